"""The tables of docs/jetson.md: Jetsons' GPUs, and what bounds a training step on one, by kernel, without weights."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np

from edgetune.bench import roofline
from edgetune.formats.gguf import FORMATS, open_gguf
from edgetune.machine.device import board_named, read_profiles
from edgetune.models.networks import open_network
from edgetune.training.config import TrainConfig
from edgetune.training.planned import make_plan

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny import Shape, format_of, model_metadata, tensor_shapes, tokenizer_metadata

BOARD = "jetson-orin-nano-8gb"
LENGTH = 256
SMOLLM2 = Shape(d_model=576, n_blocks=30, n_heads=9, n_kv_heads=3, head_width=64, d_ff=1536, n_vocab=49152)
LLAMA = Shape(d_model=2048, n_blocks=22, n_heads=32, n_kv_heads=4, head_width=64, d_ff=5632, n_vocab=32000, tied=False)
# name, shape, formats, rows in a step
STEPS = (("SmolLM2-135M, Q4_1", SMOLLM2, {"token_embd": "Q8_0", ".weight": "Q4_1"}, 4),
         ("SmolLM2-135M, Q4_1", SMOLLM2, {"token_embd": "Q8_0", ".weight": "Q4_1"}, 1),
         ("a llama of 1.1 billion weights, Q4_0", LLAMA, {".weight": "Q4_0"}, 4),
         ("a llama of 1.1 billion weights, Q4_0", LLAMA, {".weight": "Q4_0"}, 1))


def modules() -> Iterator[str]:
    """Of each module whose GPU the profiles know."""
    yield "| module | multiprocessors | GPU, GHz | TFLOP/s, bf16 | GB/s | in Super mode: GHz | TFLOP/s | GB/s |"
    yield "|---|---|---|---|---|---|---|---|"
    for board in sorted((board for board in read_profiles() if board.gpu_sms), key=lambda board: board.memory_mib):
        for size in board.memory_mib:
            gpus = board.sold_with(size).gpus()
            cells = [f"{gpu.ghz:g} | {gpu.tensor_flops / 1e12:.1f} | {gpu.memory_gb_s:g}" for gpu in gpus]
            cells += [" |  | "] * (2 - len(gpus))
            name = board.name.removeprefix("NVIDIA Jetson ")
            yield f"| {name} {size >> 10} GB | {gpus[0].sms} | {' | '.join(cells)} |"


def write_hollow(path: Path, shape: Shape, formats: Mapping[str, str]) -> Path:
    """A GGUF of such a llama whose weights are a hole in the file: all zero, and no bytes on the disk."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (tokenizer_metadata(shape.n_vocab) | model_metadata("llama", shape)).items():
        kind = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32,
                str: gguf.GGUFValueType.STRING}.get(type(value), gguf.GGUFValueType.ARRAY)
        writer.add_key_value(key, value, kind)
    total = 0
    for name, size in tensor_shapes(shape):
        fmt = "F32" if len(size) == 1 else format_of(name, formats)
        nbytes = int(np.prod(size)) // FORMATS[fmt].block * FORMATS[fmt].size
        writer.add_tensor_info(name, size, np.dtype(np.float32), nbytes, gguf.GGMLQuantizationType[fmt])
        total += -(-nbytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    file.truncate(file.tell() + total)
    writer.close()
    return path


def tables() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, shape, formats, rows) in enumerate(STEPS):
            path = write_hollow(Path(folder) / f"{number}.gguf", shape, formats)
            yield from ("", f"**{name}, {rows} x {LENGTH} tokens**", "", *table(path, rows))


def table(path: Path, rows: int) -> Iterator[str]:
    board = board_named(BOARD)
    network = open_network(open_gguf(path))
    config = TrainConfig(batch_size=rows, max_length=LENGTH)
    calls = roofline.step_calls(network, make_plan(network, config, board=board), config)
    slow, fast = board.gpus()
    pairs = list(zip(roofline.bounds(calls, slow), roofline.bounds(calls, fast), strict=True))
    yield (f"| kernels | launches | GFLOP | MB | ms at {slow.memory_gb_s:g} GB/s, {slow.ghz:g} GHz | bound by | "
           f"ms at {fast.memory_gb_s:g} GB/s, {fast.ghz:g} GHz | bound by |")
    yield "|---|---|---|---|---|---|---|---|"
    for one, other in pairs:
        yield (f"| {one.kind} | {one.calls} | {one.flops / 1e9:.1f} | {one.nbytes / 1e6:.0f} | "
               f"{one.seconds * 1e3:.1f} | {one.bound} | {other.seconds * 1e3:.1f} | {other.bound} |")
    seconds = [sum(pair[i].seconds for pair in pairs) for i in (0, 1)]
    speeds = [f"{second * 1e3:.1f} | {rows * LENGTH / second:.0f} tokens/s" for second in seconds]
    yield (f"| a step | {sum(one.calls for one, _ in pairs)} | {sum(one.flops for one, _ in pairs) / 1e9:.1f} | "
           f"{sum(one.nbytes for one, _ in pairs) / 1e6:.0f} | {' | '.join(speeds)} |")
