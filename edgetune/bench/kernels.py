"""Every op alone, at the shapes of real models, compared with what a loop that stays in registers reaches.

T tokens, D model width, F MLP width, H heads, G key/value heads, C head width, V vocabulary, R rank; N rows and K
columns of a weight. Products with frozen weights are measured in each precision, all else once, in float.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..backends import cpu, native
from ..backends.base import CACHE, HEAD_STATE, MOMENT_BYTES, MOMENTS, SAMPLE_STATE
from ..formats.gguf import FORMATS
from ..machine import device
from ..models.structure import HEAD_BYTES
from . import ops

# T, R
TOKENS = 256
RANK = 8
CANDIDATES = 40  # highest logits that head_top finds
# an op is called until both leasts, or enough, are reached
LEAST_SECONDS = 0.03
LEAST_CALLS = 3
ENOUGH_SECONDS = 1.0

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sizes:
    """What the shapes of a model's ops are made of: D, H, G, C, F, V."""

    d: int
    h: int
    g: int
    c: int
    f: int
    v: int

    def products(self) -> dict[tuple[int, int], list[str]]:
        """[N, K] of a block's projections -> those that have this shape."""
        found: dict[tuple[int, int], list[str]] = {}
        for name, shape in {"q": (self.h * self.c, self.d), "k": (self.g * self.c, self.d),
                            "v": (self.g * self.c, self.d), "output": (self.d, self.h * self.c),
                            "gate": (self.f, self.d), "up": (self.f, self.d), "down": (self.d, self.f)}.items():
            found.setdefault(shape, []).append(name)
        return found


MODELS = {
    "SmolLM2-135M": Sizes(576, 9, 3, 64, 1536, 49152),
    "Qwen3-0.6B": Sizes(1024, 16, 8, 128, 3072, 151936),
    "Llama-3.2-1B": Sizes(2048, 32, 8, 64, 8192, 128256),
}


@dataclass(frozen=True)
class Case:
    """A call of the backend's `op` with these arguments."""

    op: str
    of: str  # the projections, or another word on what it works on
    shape: tuple[int, ...]  # T x N x K of a product
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Result:
    """gflops of ops that multiply much, else gb_s (bytes of the arrays, once); peak_share: gflops by the loop's."""

    model: str
    isa: str
    format: str  # "" where no weight is read
    precision: str  # "" where the precision does not matter
    op: str
    of: str
    shape: tuple[int, ...]
    seconds: float  # the least of several calls
    gflops: float | None = None
    gb_s: float | None = None
    peak_share: float | None = None

    @property
    def backward(self) -> bool:
        return self.op.endswith("_backward")


class KernelSet:
    """A kernel set in one precision. `peaks`: the best that a register loop has reached in its products' numbers until
    now, FLOP/s, forward and (True) backward.

    The loop runs again with each op: the clock of the cores changes, and other programs use them too, so that a rate
    measured once would be passed by an op that ran in a better moment.
    """

    def __init__(self, threads: int, isa: str, precision: str) -> None:
        self.ops = cpu.Cpu(threads, isa)
        self.isa = isa
        self.precision = precision
        self.products = self.ops.products(precision)
        self.peaks = {False: 0.0, True: 0.0}
        self._measure_peak(False)
        self._measure_peak(True)

    def measure(self, model: str, fmt: str, precision: str, case: Case) -> Result:
        """All but the share of the peak, which is not known before the last op."""
        function = getattr(self.ops, case.op)
        names = ops.arguments(case.op)
        if "precision" in names:
            function = partial(function, precision=self.precision)
        seconds = _least_seconds(lambda: function(*case.args))
        result = Result(model, self.isa, fmt, precision, case.op, case.of, case.shape, seconds)
        given = dict(zip(names, case.args, strict=False))
        if work := ops.flops(case.op, given):
            self._measure_peak(result.backward)
            return replace(result, gflops=work / seconds / 1e9)
        nbytes = sum(a.nbytes for a in case.args if isinstance(a, np.ndarray))
        return replace(result, gb_s=nbytes / seconds / 1e9)

    def with_share(self, result: Result) -> Result:
        """The same with its share of the best peak."""
        if result.gflops is None:
            return result
        return replace(result, peak_share=result.gflops * 1e9 / self.peaks[result.backward])

    def facts(self) -> dict[str, Any]:
        return {"isa": self.isa, "precision": self.precision, "products": self.products,
                "forward_gflops": self.peaks[False] / 1e9, "backward_gflops": self.peaks[True] / 1e9}

    def _measure_peak(self, backward: bool) -> None:
        self.peaks[backward] = max(self.peaks[backward], self.ops.peak(self.precision, backward))


def run(isas: Sequence[str], precisions: Sequence[str], models: Sequence[str], formats: Sequence[str], threads: int,
        on_result: Callable[[Result], None] = lambda _: None) -> dict[str, Any]:
    """Measures these kernel sets; on_result gets results without their share of the peak. F32 is always exact."""
    results = []
    peaks = []
    for isa in isas:
        sets = {precision: KernelSet(threads, isa, precision) for precision in dict.fromkeys(("exact", *precisions))}
        measured = []
        for result in _results(sets, precisions, models, formats):
            on_result(result)
            measured.append(result)
        results += [sets[result.precision or "exact"].with_share(result) for result in measured]
        peaks += [kernels.facts() for kernels in sets.values()]
    here = device.read_device()
    return {"bench": "kernels", "device": here.name, "cpu": here.cpu, "threads": threads,
            "tokens": TOKENS, "peaks": peaks, "results": [vars(result) for result in results]}


def _results(sets: dict[str, KernelSet], precisions: Sequence[str], models: Sequence[str],
             formats: Sequence[str]) -> Iterator[Result]:
    exact = sets["exact"]
    for model in models:
        sizes = MODELS[model]
        for fmt in formats:
            for case in frozen_products(sizes, fmt):
                for precision in precisions if fmt != "F32" else ("exact",):
                    yield sets[precision].measure(model, fmt, precision, case)
            for case in unpacking(sizes, fmt):
                yield exact.measure(model, fmt, "", case)
        for case in (*adapter_products(sizes), *attention(sizes), *others(sizes)):
            yield exact.measure(model, "", "", case)


# ---- what is called; formats whose blocks do not divide a weight's columns are left out -------------------------


def frozen_products(s: Sizes, fmt: str) -> Iterator[Case]:
    for (n, k), names in s.products().items():
        if k % FORMATS[fmt].block == 0:
            out = floats(TOKENS, n)
            inp = floats(TOKENS, k)
            w = weight(fmt, n, k)
            yield Case("matmul_forward", " ".join(names), (TOKENS, n, k), (out, inp, w, fmt))
            yield Case("matmul_backward", " ".join(names), (TOKENS, n, k), (inp, out, w, fmt))
    if s.d % FORMATS[fmt].block == 0:
        w = weight(fmt, s.v, s.d)
        targets = np.arange(TOKENS, dtype=np.int32)
        logits = floats(TOKENS, HEAD_BYTES // (4 * TOKENS))
        state = floats(TOKENS, HEAD_STATE)
        h = floats(TOKENS, s.d)
        dh = floats(TOKENS, s.d)
        logp = floats(TOKENS)
        a = floats(TOKENS)
        yield Case("head_forward", "head", (TOKENS, s.v, s.d), (logp, None, logits, state, h, w, fmt, targets))
        yield Case("head_backward", "head", (TOKENS, s.v, s.d),
                   (dh, logp, logits, logits, state, h, w, fmt, targets, a))
        state = floats(TOKENS, SAMPLE_STATE)
        key = np.arange(2 * TOKENS, dtype=np.int32).reshape(TOKENS, 2)
        top = floats(TOKENS, CANDIDATES)
        limit = np.full(TOKENS, np.inf, np.float32)
        yield Case("head_sample", "head", (TOKENS, s.v, s.d),
                   (targets.copy(), logp, a, logits, state, h, w, fmt, key, None, 1.0))
        yield Case("head_top", "head", (TOKENS, s.v, s.d), (top, logp, logits, state, h, w, fmt, limit))


def unpacking(s: Sizes, fmt: str) -> Iterator[Case]:
    """The embedding is cut to the rows that are read, so that the bytes of the arrays are those that move."""
    if s.d % FORMATS[fmt].block == 0:
        tokens = np.arange(TOKENS, dtype=np.int32)[::-1].copy()
        yield Case("dequantize", "gate", (s.f, s.d), (floats(s.f, s.d), weight(fmt, s.f, s.d), fmt))
        yield Case("embed", "", (TOKENS, s.d), (floats(TOKENS, s.d), tokens, weight(fmt, TOKENS, s.d), fmt))


def adapter_products(s: Sizes) -> Iterator[Case]:
    x, u, out, a, b = (floats(*shape) for shape in ((TOKENS, s.d), (TOKENS, RANK), (TOKENS, s.f), (RANK, s.d),
                                                     (s.f, RANK)))
    yield Case("matmul_forward", "adapter A", (TOKENS, RANK, s.d), (u, x, a, "F32"))
    yield Case("matmul_forward", "adapter B", (TOKENS, s.f, RANK), (out, u, b, "F32"))
    yield Case("matmul_backward", "adapter B", (TOKENS, s.f, RANK), (u, out, b, "F32"))
    yield Case("matmul_dweight", "adapter B", (TOKENS, s.f, RANK), (b, out, u))
    yield Case("matmul_backward", "adapter A", (TOKENS, RANK, s.d), (x, u, a, "F32"))
    yield Case("matmul_dweight", "adapter A", (TOKENS, RANK, s.d), (a, u, x))


def attention(s: Sizes) -> Iterator[Case]:
    q, out, dout, dq = (floats(TOKENS, s.h, s.c) for _ in range(4))
    k, v, dk, dv = (floats(TOKENS, s.g, s.c) for _ in range(4))
    lse = floats(s.h, TOKENS)
    delta = floats(s.h, TOKENS)
    end = np.full(TOKENS, TOKENS, np.int32)
    position = np.arange(TOKENS, dtype=np.int32)
    scale = s.c**-0.5
    yield Case("attention_forward", "", (TOKENS, s.h, s.g, s.c), (out, lse, q, k, v, end, position, scale))
    yield Case("attention_backward", "", (TOKENS, s.h, s.g, s.c),
               (dq, dk, dv, delta, dout, out, lse, q, k, v, end, position, scale))
    blocks = -(-TOKENS // CACHE)
    keys = floats(blocks, s.g, s.c, CACHE)
    values = floats(blocks, s.g, CACHE, s.c)
    path = np.tile(np.arange(1, blocks + 1, dtype=np.int32) * CACHE - 1, (TOKENS, 1))  # each sees all
    yield Case("cache_store", "", (TOKENS, s.g, s.c), (keys, values, k, v, position))
    yield Case("attention_cached", "", (TOKENS, s.h, s.g, s.c), (out, q, keys, values, path, scale))


def others(s: Sizes) -> Iterator[Case]:
    x = floats(TOKENS, s.d)
    y = floats(TOKENS, s.d)
    rstd = np.ones(TOKENS, np.float32)
    vector = floats(s.d)
    yield Case("rmsnorm_forward", "", (TOKENS, s.d), (y, rstd, x, vector, 1e-5))
    yield Case("rmsnorm_backward", "", (TOKENS, s.d), (floats(TOKENS, s.d), y, x, vector, rstd))
    angle = floats(TOKENS, s.c // 2)
    positions = np.arange(TOKENS, dtype=np.int32)
    for neox in (False, True):
        yield Case("rope", "neox" if neox else "", (TOKENS, s.h, s.c),
                   (floats(TOKENS, s.h, s.c), np.cos(angle), np.sin(angle), positions, neox, 1.0))
    gate, up, act, dup = (floats(TOKENS, s.f) for _ in range(4))
    for kind in native.GLU_KINDS:
        yield Case("glu_forward", kind, (TOKENS, s.f), (act, gate, up, kind))
        yield Case("glu_backward", kind, (TOKENS, s.f),
                   (floats(TOKENS, s.f), dup, floats(TOKENS, s.f), act, gate, up, kind))
    yield Case("add_bias", "", (TOKENS, s.d), (x, vector))
    yield Case("copy", "", (TOKENS, s.d), (x, y))
    yield Case("add", "", (TOKENS, s.d), (x, y))
    yield Case("scale", "", (TOKENS, s.d), (x, 1.0))
    yield Case("dropout", "", (TOKENS, s.d), (y, x, 0.1, 1))
    param, grad, m, v = (floats(RANK * s.f) for _ in range(4))
    yield Case("adamw", "", (RANK * s.f,), (param, grad, m, np.abs(v), 1e-4, 0.9, 0.999, 1e-8, 0.0, 1))
    moments = np.zeros((-(-param.size // MOMENTS), MOMENT_BYTES), np.uint8)
    yield Case("adamw8", "", (RANK * s.f,), (param, grad, moments, 1e-4, 0.9, 0.999, 1e-8, 0.0, 1, 1))
    yield Case("sum_squares", "", (RANK * s.f,), (grad,))


def floats(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def weight(fmt: str, n: int, k: int) -> Array:
    """Bytes of a weight [N, K] in any format: from 0x20 to 0x2f, so that every scale in it is an ordinary number."""
    nbytes = n * k // FORMATS[fmt].block * FORMATS[fmt].size
    return np.random.default_rng(0).integers(0x20, 0x30, nbytes, np.uint8)


def _least_seconds(call: Callable[[], None]) -> float:
    least = float("inf")
    total = 0.0
    calls = 0
    while (total < LEAST_SECONDS or calls < LEAST_CALLS) and total < ENOUGH_SECONDS:
        began = time.perf_counter()
        call()
        seconds = time.perf_counter() - began
        least = min(least, seconds)
        total += seconds
        calls += 1
    return least
