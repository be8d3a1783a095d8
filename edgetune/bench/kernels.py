"""Products with frozen weights alone, at the shapes of a real model, compared with a loop that stays in registers.

T tokens; N rows and K columns of a weight. `bench train` times all other ops, in a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..backends import cpu
from ..backends.base import HEAD_STATE
from ..formats.gguf import FORMATS
from ..machine import device
from ..models.structure import HEAD_BYTES

TOKENS = 256  # T
LEAST_SECONDS = 0.03  # a product is called until both leasts, or ENOUGH_SECONDS, are reached
LEAST_CALLS = 3
ENOUGH_SECONDS = 1.0
HEAD = "head"
MODELS = {  # [N, K] of the weights that a model's products read
    "SmolLM2-135M": {"q output": (576, 576), "k v": (192, 576), "gate up": (1536, 576), "down": (576, 1536),
                     HEAD: (49152, 576)},
    "Qwen3-0.6B": {"q": (2048, 1024), "k v": (1024, 1024), "output": (1024, 2048), "gate up": (3072, 1024),
                   "down": (1024, 3072), HEAD: (151936, 1024)},
    "Llama-3.2-1B": {"q output": (2048, 2048), "k v": (512, 2048), "gate up": (8192, 2048), "down": (2048, 8192),
                     HEAD: (128256, 2048)},
}

Array = np.ndarray[Any, Any]


def run(isa: str, precisions: Sequence[str], model: str, fmt: str, threads: int,
        on_product: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Times each product of a model forward and backward; on_product is called with the name of the next.

    The loop runs again with each product, and its best rate counts: the clock of the cores changes, and other programs
    use them too. A weight whose columns the blocks of the format do not divide is left out.
    """
    ops = cpu.Cpu(threads, isa)
    results: list[dict[str, Any]] = []
    peaks = []
    for precision in precisions:
        peak = {False: 0.0, True: 0.0}
        measured: list[dict[str, Any]] = []
        for name, (n, k) in MODELS[model].items():
            if k % FORMATS[fmt].block:
                continue
            for op, call in _calls(ops, name, n, k, fmt, precision).items():
                on_product(f"{precision} {op} {name}")
                is_backward = op.endswith("_backward")
                peak[is_backward] = max(peak[is_backward], ops.peak(precision, is_backward))
                times = 2 if op == "head_backward" else 1  # it makes the logits again
                seconds = _least_seconds(call)
                measured.append({"op": op, "of": name, "shape": [TOKENS, n, k], "precision": precision,
                                 "seconds": seconds, "gflops": times * 2 * TOKENS * n * k / seconds / 1e9})
        peaks.append({"precision": precision, "products": ops.products(precision),
                      "forward_gflops": peak[False] / 1e9, "backward_gflops": peak[True] / 1e9})
        for result in measured:
            direction = result["op"].rpartition("_")[2]
            results.append({**result, "peak_share": result["gflops"] / peaks[-1][f"{direction}_gflops"]})
    here = device.read_device()
    return {"bench": "kernels", "device": here.name, "cpu": here.cpu, "isa": isa, "model": model, "format": fmt,
            "threads": threads, "peaks": peaks, "results": results}


def _calls(ops: cpu.Cpu, name: str, n: int, k: int, fmt: str, precision: str) -> dict[str, Callable[[], None]]:
    """The ops that read this weight."""
    w = weight(fmt, n, k)
    inp = _floats(TOKENS, k)
    dinp = _floats(TOKENS, k)
    if name != HEAD:
        out = _floats(TOKENS, n)
        return {"matmul_forward": partial(ops.matmul_forward, out, inp, w, fmt, precision=precision),
                "matmul_backward": partial(ops.matmul_backward, dinp, out, w, fmt, precision=precision)}
    logp = _floats(TOKENS)
    a = _floats(TOKENS)
    logits = _floats(TOKENS, HEAD_BYTES // (4 * TOKENS))
    state = _floats(TOKENS, HEAD_STATE)
    targets = np.arange(TOKENS, dtype=np.int32)
    return {"head_forward": partial(ops.head_forward, logp, None, logits, state, inp, w, fmt, targets,
                                    precision=precision),
            "head_backward": partial(ops.head_backward, dinp, logp, logits, logits, state, inp, w, fmt, targets, a,
                                     precision=precision)}


def _floats(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def weight(fmt: str, n: int, k: int) -> Array:
    """Bytes of a weight [N, K] in any format: from 0x20 to 0x2f, so that every scale in it is an ordinary number."""
    nbytes = n * k // FORMATS[fmt].block * FORMATS[fmt].size
    return np.random.default_rng(0).integers(0x20, 0x30, nbytes, np.uint8)


def _least_seconds(call: Callable[[], None]) -> float:
    seconds: list[float] = []
    while (sum(seconds) < LEAST_SECONDS or len(seconds) < LEAST_CALLS) and sum(seconds) < ENOUGH_SECONDS:
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
