"""Each block has one scale and 32 codes of 4 bits. tinyllama: 1.1 billion weights, 620 MB. llama3.2-3b: 3.2 billion,
1.8 GB. qwen2.5-3b: 3.1 billion, 1.7 GB. olmoe: a mixture of experts with 6.9 billion weights, of which a token takes
1.3 billion, 3.9 GB. gemma4-e2b: of its 4.6 billion weights 2.3 billion are embeddings of each block, 2.6 GB.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
from tiny import PLAIN, Shape, model_metadata, tensor_shapes, tokenizer_metadata

BLOCK = np.dtype([("scale", "<f2"), ("codes", "u1", 16)])  # 32 weights of Q4_0
ROWS = 1024  # written at a time


SHAPES = {
    "tinyllama": ("llama", Shape(d_model=2048, n_blocks=22, n_heads=32, n_kv_heads=4, head_width=64, d_ff=5632,
                                 n_vocab=32000, n_context=2048, tied=False)),
    "llama3.2-3b": ("llama", Shape(d_model=3072, n_blocks=28, n_heads=24, n_kv_heads=8, head_width=128, d_ff=8192,
                                   n_vocab=128256, n_context=8192)),
    "qwen2.5-3b": ("qwen2", Shape(d_model=2048, n_blocks=36, n_heads=16, n_kv_heads=2, head_width=128, d_ff=11008,
                                  n_vocab=151936, n_context=32768, rope_base=1e6, rms_eps=1e-6, qkv_bias=True)),
    "olmoe": ("olmoe", Shape(d_model=2048, n_blocks=16, n_heads=16, n_kv_heads=16, head_width=128, d_ff=1024,
                             n_vocab=50304, n_context=4096, tied=False, qk_norm="width", experts=(64, 8))),
    "gemma4-e2b": ("gemma4", Shape(d_model=1536, n_blocks=35, n_heads=8, n_kv_heads=1, head_width=512, narrow_width=256,
                                   d_ff=6144, n_vocab=262144, n_context=8192, rope_base=1e6, rms_eps=1e-6,
                                   qk_norm="head", norms="both", window=512, window_pattern=5, shared=20, d_block=256,
                                   cap=30.0)),
}


def write(path: Path, name: str = "tinyllama", blocks: int = 0, seed: int = 0) -> Path:
    architecture, shape = SHAPES[name]
    shape = replace(shape, n_blocks=blocks or shape.n_blocks)
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    fields = tokenizer_metadata(shape.n_vocab, pre=architecture) | model_metadata(architecture, shape)
    for key, value in fields.items():
        kind = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32,
                str: gguf.GGUFValueType.STRING}.get(type(value), gguf.GGUFValueType.ARRAY)
        writer.add_key_value(key, value, kind)
    tensors = dict(tensor_shapes(shape))
    for name, size in tensors.items():
        kind = gguf.GGMLQuantizationType.F32 if is_plain(name, size) else gguf.GGMLQuantizationType.Q4_0
        count = int(np.prod(size))
        n_bytes = 4 * count if is_plain(name, size) else count // 32 * BLOCK.itemsize
        writer.add_tensor_info(name, size, np.dtype(np.float32), n_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    for name, size in tensors.items():
        flat = size if len(size) < 3 else (size[0] * size[1], size[2])
        for rows in range(0, flat[0], ROWS):
            file.write(values(rng, name, (min(ROWS, flat[0] - rows), *flat[1:])))
        writer.write_padding(file, file.tell())
    writer.close()
    return path


def is_plain(name: str, size: tuple[int, ...]) -> bool:
    """Whether a tensor is of floats: norms, and convolutions of a few tokens."""
    return len(size) == 1 or name.endswith(PLAIN)


def values(rng: np.random.Generator, name: str, size: tuple[int, ...]) -> bytes:
    """Norms near 1, what states decay by near -1; weights of a spread of 1 / sqrt(columns): a code is within 7 of its
    middle, 4.3 away as a rule.

    Their mean is 0: were it the -0.5 of all 16 codes, all tokens would become alike and take the same experts.
    """
    if is_plain(name, size):
        return ((-1 if name.endswith("ssm_a") else 1) + 0.1 * rng.standard_normal(size)).astype(np.float32).tobytes()
    blocks = np.empty(size[0] * size[1] // 32, BLOCK)
    blocks["scale"] = 1 / (4.3 * np.sqrt(size[1]))
    low, high = rng.integers(1, 16, (2, *blocks["codes"].shape), np.uint8)
    blocks["codes"] = low | high << 4
    return blocks.tobytes()


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama")
    parser.add_argument("--blocks", type=int, default=0, help="[the shape's]")


def main(args: argparse.Namespace) -> None:
    write(args.out, args.shape, args.blocks)
