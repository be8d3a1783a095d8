"""The speed of each kind of sublayer at the sizes of real models, forward and backward, as a share of what a loop in
registers reaches; and what the ops of convolutions and states take of a step.

    python tests/proofs/kinds.py [--models NAME ...] [--tokens 512] [--precision fast] [--repeats 5]

Random weights in Q4_0, one block of each kind, LoRA of rank 8 on all projections, one document, one thread. A time is
the CPU seconds of a sublayer with its norm, its adapter and its sum with the residual stream; the least of the repeats
counts. FLOP are those of the frozen products, of attention and of states; of the head those of logits and of their
gradient, without making the logits again. A step is all blocks of the model and its head, with a loss at all tokens.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from big import write_shape
from tiny import Shape

from edgetune.adapters.low_rank import LoraFamily
from edgetune.backends.arena import Arena, Buffer
from edgetune.backends.base import OPS
from edgetune.backends.cpu import Cpu
from edgetune.data.packing import Batch, Example, collate
from edgetune.formats.gguf import open_gguf
from edgetune.models.decoder import Decoder, Model
from edgetune.models.linear import RunShape
from edgetune.models.structure import feed_of, mixer_of

HEAD = "head"

@dataclass(frozen=True)
class Real:
    """A few blocks of a model; the first stands for those below. counts: how many the model has like each other one."""

    architecture: str
    shape: Shape
    counts: tuple[int, ...]
    n_vocab: int


def shape(d: int, heads: int, kv: int, width: int, ff: int, **more: Any) -> Shape:
    return Shape(d_model=d, n_heads=heads, n_kv_heads=kv, head_width=width, d_ff=ff, n_context=4096,
                 **{"n_blocks": 2, **more})


CONV = {"qk_norm": "head", "rope_base": 1e6, "n_blocks": 3, "conv": (0, 1)}
DELTA = {"qk_norm": "head", "rope_base": 1e7, "rms_eps": 1e-6, "n_blocks": 3, "attends_every": 3}
MAMBA = {"n_blocks": 3, "attends": (2,), "scales": (12.0, 0.246, 0.015625, 3.0)}
MODELS = {
    "Qwen3-0.6B": Real("qwen3", shape(1024, 16, 8, 128, 3072, qk_norm="head"), (28,), 151936),
    "Llama-3.2-1B": Real("llama", shape(2048, 32, 8, 64, 8192), (16,), 128256),
    "Llama-3.2-3B": Real("llama", shape(3072, 24, 8, 128, 8192), (28,), 128256),
    "Phi-4-mini": Real("phi3", shape(3072, 24, 8, 128, 8192, fused=True, fused_feed=True), (32,), 200064),
    "LFM2-350M": Real("lfm2", shape(1024, 16, 8, 64, 4608, **CONV), (10, 6), 65536),
    "LFM2-1.2B": Real("lfm2", shape(2048, 32, 8, 64, 8192, **CONV), (10, 6), 65536),
    "Qwen3.5-0.8B": Real("qwen35", shape(1024, 8, 2, 256, 3584, delta=(16, 16, 128), **DELTA), (18, 6), 248320),
    "Qwen3.5-4B": Real("qwen35", shape(2560, 16, 4, 256, 9216, delta=(16, 32, 128), **DELTA), (24, 8), 248320),
    "Granite-4.0-H-350M": Real("granitehybrid", shape(768, 12, 4, 64, 2048, mamba=(48, 128, 1), **MAMBA), (28, 4),
                               100352),
    "Granite-4.0-H-1B": Real("granitehybrid", shape(1536, 12, 4, 128, 4096, mamba=(48, 128, 1), **MAMBA), (36, 4),
                             100352),
    "Granite-3-1B-A400M": Real("granitemoe", shape(1024, 16, 8, 64, 512, scales=(12.0, 0.22, 0.0156, 6.0),
                                                   experts=(32, 8)), (24,), 49155),
    "OLMoE-1B-7B": Real("olmoe", shape(2048, 16, 16, 128, 1024, qk_norm="width", tied=False, experts=(64, 8)), (16,),
                        50304),
}


@dataclass(frozen=True)
class Part:
    """A sublayer in one direction, or the head; its layer is -1."""

    layer: int
    kind: str
    direction: str


class Clock:
    """CPU seconds of each part, and of each op in it."""

    def __init__(self) -> None:
        self.parts: dict[Part, float] = defaultdict(float)
        self.ops: dict[tuple[str, Part], float] = defaultdict(float)
        self._part: Part | None = None

    @contextmanager
    def within(self, part: Part) -> Iterator[None]:
        """Counts for this part, and not for the one around it."""
        before, self._part = self._part, part
        began = time.process_time()
        yield
        spent = time.process_time() - began
        self.parts[part] += spent
        if before:
            self.parts[before] -= spent
        self._part = before

    def watch(self, decoder: Decoder) -> None:
        s = decoder.shape
        for direction in ("forward", "backward"):
            self._watch_parts(decoder, "block", direction, s.mixer)
            self._watch_parts(decoder, "feed", direction, s.feed)
        head = decoder._head.backward

        def call(*args: Any) -> Any:
            with self.within(Part(-1, HEAD, "backward")):
                return head(*args)

        decoder._head.backward = call  # type: ignore[method-assign]
        for name in OPS:
            setattr(decoder.ops, name, self._watched(name, getattr(decoder.ops, name)))

    def _watch_parts(self, decoder: Decoder, name: str, direction: str, kind: Callable[[int], str]) -> None:
        method = getattr(decoder, f"_{name}_{direction}")

        def call(layer: int, *args: Any, **options: Any) -> Any:
            with self.within(Part(layer, kind(layer), direction)):
                return method(layer, *args, **options)

        setattr(decoder, f"_{name}_{direction}", call)

    def _watched(self, name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            began = time.process_time()
            found = op(*args, **options)
            if self._part:
                self.ops[name, self._part] += time.process_time() - began
            return found

        return call


def opened(path: Path, tokens: int, precision: str) -> Decoder:
    model = Model(open_gguf(path))
    run = RunShape(max_tokens=tokens, max_length=tokens, family=LoraFamily(rank=8, alpha=16),
                   targets=model.structure.targets(), blocks=range(model.shape.n_layer), kept=model.shape.n_layer,
                   threads=1, precision=precision)
    ops = Cpu(1)
    parameters = sum(group.size for group in model.structure.parameters(run))
    buffers = [Buffer("lora", (parameters,), "run"), Buffer("dlora", (parameters,), "run"),
               Buffer("scratch", (ops.scratch_bytes,), "run", "uint8"), *model.structure.buffers(run)]
    arena = Arena(buffers, ops.allocate)
    ops.use_scratch(arena.flat("scratch"))
    return Decoder(model, run, ops, arena)


def batch_of(tokens: int) -> Batch:
    ids = np.random.default_rng(0).integers(3, 416, tokens).astype(np.int32)
    return collate([Example(ids, np.ones(tokens, np.float32))])


def flops(decoder: Decoder, part: Part, tokens: int) -> int:
    s = decoder.shape
    if part.kind == HEAD:
        return 4 * (tokens - 1) * s.n_vocab * s.d_model
    kind = mixer_of(s, part.layer) if part.kind == s.mixer(part.layer) else feed_of(s, part.layer)
    linear = s.linear_shapes(part.layer)
    products = sum(2 * tokens * n * k for name, (n, k) in linear.items() if name in (kind.last, *kind.inputs))
    own = kind.flops(s, part.layer, [tokens])
    share = kind.backward_share if part.direction == "backward" else 1.0
    return products + round(share * own)


def least(found: dict[Any, float], others: dict[Any, float]) -> dict[Any, float]:
    return {key: min(spent, found.get(key, np.inf)) for key, spent in others.items()}


def measured(name: str, tokens: int, precision: str, repeats: int) -> dict[str, Any]:
    real = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = write_shape(Path(folder) / "model.gguf", real.architecture, replace(real.shape, n_vocab=real.n_vocab))
        decoder = opened(path, tokens, precision)
    batch = batch_of(tokens)
    parts: dict[Part, float] = {}
    ops: dict[tuple[str, Part], float] = {}
    peaks = {"forward": 0.0, "backward": 0.0}
    clock = Clock()
    clock.watch(decoder)
    for _ in range(repeats + 1):  # the first brings the weights into memory
        clock.parts.clear()
        clock.ops.clear()
        decoder.forward(batch, keep=True)
        decoder.backward(batch, np.ones(batch.supervised.size, np.float32))
        parts = least(parts, clock.parts)
        ops = least(ops, clock.ops)
        for direction in peaks:
            peaks[direction] = max(peaks[direction], decoder.ops.peak(precision, direction == "backward"))
    times = {-1: 1, **dict(enumerate(real.counts, start=1))}
    step = sum(spent * times.get(part.layer, 0) for part, spent in parts.items())
    shares: dict[str, float] = defaultdict(float)
    for (op, part), spent in ops.items():
        shares[op] += spent * times.get(part.layer, 0) / step
    kinds = []
    for part, spent in parts.items():
        count = flops(decoder, part, tokens)
        if part.layer:
            kinds.append({"kind": part.kind, "direction": part.direction, "layer": part.layer, "ms": 1e3 * spent,
                          "gflop": count / 1e9, "peak_share": count / spent / peaks[part.direction]})
    return {"model": name, "tokens": tokens, "precision": precision, "load": os.getloadavg()[0],
            "peak_gflops": {direction: peak / 1e9 for direction, peak in peaks.items()}, "kinds": kinds,
            "of_step": {op: share for op, share in sorted(shares.items(), key=lambda each: -each[1]) if share > 0.001}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--precision", choices=("exact", "fast", "int8"), default="fast")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for name in args.models:
        print(json.dumps(measured(name, args.tokens, args.precision, args.repeats)), flush=True)


if __name__ == "__main__":
    main()
