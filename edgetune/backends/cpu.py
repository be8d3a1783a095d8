"""The CPU as a backend, and the only module that imports the C extension: a method for each function of native/et.h.

`base` documents the ops.
"""

from __future__ import annotations

import contextlib
import mmap
import time
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..errors import UnsupportedError
from . import _native
from .base import WHOLE, Array, Backend, LowRank


class Format(NamedTuple):
    """How GGUF stores weights: `size` bytes hold `block` consecutive weights of a row. `id` is GGUF's number.

    `scales` is one of native/formats.def's words, and `halves` is where a block has half-precision numbers; both are
    empty for a format that edgetune only names.
    """

    name: str
    id: int
    block: int
    size: int
    scales: str = ""
    halves: tuple[int, ...] = ()


FORMATS = {name: Format(name, *facts) for name, facts in _native.FORMATS.items()}
"""The formats that ops take, by name."""

GLU_KINDS = {"silu": 0, "gelu": 1}

PRECISIONS = {"exact": 0, "fast": 1, "int8": 2}

_PEAK_RUN = 1e-3  # seconds of a run of the register loop at least
_PEAK_SECONDS = 0.05  # of all its runs

_CODES = {  # as in native/et.h
    -1: "a size is zero or negative, or not a multiple of what the format needs, or a number is out of its range",
    -2: "unknown weight format",
    -3: "a token, target or position is out of its range, or the tokens are no forest",
}


def _check(code: int) -> None:
    if code:
        raise ValueError(_CODES.get(code, f"native code {code}"))


def _format(name: str) -> int:
    if name not in FORMATS:
        raise ValueError(f"unknown weight format {name!r}: known are {', '.join(FORMATS)}")
    return FORMATS[name].id


def _activation(kind: str) -> int:
    if kind not in GLU_KINDS:
        raise ValueError(f"unknown activation {kind!r}: known are {', '.join(GLU_KINDS)}")
    return GLU_KINDS[kind]


def isa_names() -> list[str]:
    """The instruction sets that were compiled in, best first, "scalar" last."""
    return [name for name, _ in _native.kernel_sets()]


def usable(isa: str) -> bool:
    """Whether CPU and OS can run `isa`, and the environment variable EDGETUNE_ISA does not hide it."""
    return dict(_native.kernel_sets()).get(isa, False)


def cpu_features() -> str:
    """What detection found, space separated."""
    return _native.cpu_features()


def scratch_bytes(threads: int) -> int:
    """Bytes of scratch that a Cpu with this many threads needs."""
    size = _native.scratch_bytes(threads)
    if not size:
        raise ValueError(f"threads must be 1 to 1024, not {threads}")
    return size


def _check_isa(isa: str | None) -> None:
    have = [name for name in isa_names() if usable(name)]
    if isa is None and not have:
        raise UnsupportedError("this CPU or build does not have an instruction set that EDGETUNE_ISA allows",
                               f"unset it, or name one of {', '.join(isa_names())}")
    if isa is not None and isa not in have:
        raise UnsupportedError(f"this CPU or build does not have instruction set {isa!r}",
                               f"choose from {', '.join(have) or 'none'}")


class Pages:
    """An anonymous mapping; its pages cost memory when they are first written.

    It asks for huge pages, which make training faster; none extends beyond the mapping.
    """

    def __init__(self, nbytes: int) -> None:
        self._mapping = mmap.mmap(-1, max(nbytes, mmap.PAGESIZE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # fewer misses in the page tables, where the kernel has huge pages
            self._mapping.madvise(mmap.MADV_HUGEPAGE)
        self.array: Array = np.frombuffer(self._mapping, np.uint8)

    def discard(self, begin: int) -> None:
        """See base.Memory."""
        self._mapping.madvise(mmap.MADV_DONTNEED, begin, len(self._mapping) - begin)


class Cpu(Backend):
    """An instruction set, a pool of threads, and the scratch that all ops pack into.

    `isa` None takes the best that CPU and EDGETUNE_ISA allow. Threads start with the first op. Raises ValueError for a
    number of threads that is not 1 to 1024, UnsupportedError for an instruction set that is not available here.
    """

    def __init__(self, threads: int, isa: str | None = None) -> None:
        self._scratch_bytes = scratch_bytes(threads)
        _check_isa(isa)
        self._isa = isa
        self._threads = threads
        self._working = threads
        self._scratch: Array | None = None
        self._precision = "exact"  # that the C context is set to

    @cached_property
    def _handle(self) -> _native._Context:
        """The C context."""
        scratch = self._scratch
        if scratch is None:
            scratch = np.zeros(self._scratch_bytes, np.uint8)
        handle = _native.context(self._threads, self._isa, PRECISIONS[self._precision], scratch)
        if isinstance(handle, int):
            raise MemoryError(f"could not start {self._threads} threads")
        return handle

    def _at(self, precision: str) -> _native._Context:
        """The C context at this precision."""
        if precision != self._precision:
            if precision not in PRECISIONS:
                raise ValueError(f"unknown precision {precision!r}: known are {', '.join(PRECISIONS)}")
            _native.set_precision(self._handle, PRECISIONS[precision])
            self._precision = precision
        return self._handle

    # ---- the device ---------------------------------------------------------------------------------------------

    @property
    def isa(self) -> str:
        return str(_native.context_isa(self._handle))

    @property
    def threads(self) -> int:
        return self._threads

    @property
    def working(self) -> int:
        return self._working

    @working.setter
    def working(self, threads: int) -> None:
        if _native.set_threads(self._handle, threads):
            raise ValueError(f"{threads} threads cannot work: this CPU was opened with {self._threads}")
        self._working = threads

    def products(self, precision: str) -> str:
        forward, backward = _native.context_products(self._at(precision))
        return f"{forward} forward, {backward} backward"

    def peak(self, precision: str, backward: bool = False) -> float:
        """The best of many runs of a millisecond, as short as an op: longer ones are interrupted by other programs."""
        handle = self._at(precision)
        n = 1_000
        seconds = 0.0
        while seconds < _PEAK_RUN:
            n *= 2
            began = time.perf_counter()
            _native.register_loop(handle, backward, n)
            seconds = time.perf_counter() - began
        best = 0.0
        end = time.perf_counter() + _PEAK_SECONDS
        while (began := time.perf_counter()) < end:
            operations = _native.register_loop(handle, backward, n)
            best = max(best, operations / (time.perf_counter() - began))
        return best

    @property
    def scratch_bytes(self) -> int:
        return self._scratch_bytes

    def use_scratch(self, scratch: Array) -> None:
        """Raises ValueError for a smaller array, RuntimeError after the first op."""
        if "_handle" in vars(self):
            raise RuntimeError("this CPU computes already: its scratch must be given before the first op")
        if scratch.nbytes < self._scratch_bytes:
            raise ValueError(f"scratch has {scratch.nbytes} bytes, {self._threads} threads need {self._scratch_bytes}")
        self._scratch = scratch

    def allocate(self, nbytes: int) -> Pages:
        return Pages(nbytes)

    def upload(self, mapped: Array) -> Array:
        """The bytes themselves: products read the mapped file."""
        return mapped

    # ---- ops ----------------------------------------------------------------------------------------------------

    def matmul_forward(
        self, out: Array, inp: Array, w: Array, fmt: str, scale: float = 1.0, accumulate: bool = False,
        low_rank: LowRank = (None, None), precision: str = "exact",
    ) -> None:  # fmt: skip
        _check(_native.matmul_forward(self._at(precision), out, inp, w, _format(fmt), *low_rank, scale, accumulate))

    def matmul_backward(
        self, dinp: Array, dout: Array, w: Array, fmt: str, scale: float = 1.0, accumulate: bool = False,
        low_rank: LowRank = (None, None), precision: str = "exact",
    ) -> None:  # fmt: skip
        _check(_native.matmul_backward(self._at(precision), dinp, dout, w, _format(fmt), *low_rank, scale, accumulate))

    def matmul_dweight(self, dw: Array, dout: Array, inp: Array, scale: float = 1.0, precision: str = "exact") -> None:
        _check(_native.matmul_dweight(self._at(precision), dw, dout, inp, scale))

    def dequantize(self, out: Array, w: Array, fmt: str) -> None:
        _check(_native.dequantize(self._handle, out, w, _format(fmt)))

    def embed(self, out: Array, tokens: Array, w: Array, fmt: str, scale: float = 1.0) -> None:
        _check(_native.embed(self._handle, out, tokens, w, _format(fmt), scale))

    def rmsnorm_forward(self, out: Array, rstd: Array, inp: Array, weight: Array, eps: float) -> None:
        _check(_native.rmsnorm_forward(self._handle, out, rstd, inp, weight, eps))

    def rmsnorm_backward(
        self, dinp: Array, dout: Array, inp: Array, weight: Array, rstd: Array, accumulate: bool = False,
    ) -> None:  # fmt: skip
        _check(_native.rmsnorm_backward(self._handle, dinp, dout, inp, weight, rstd, accumulate))

    def rope(self, x: Array, cos: Array, sin: Array, positions: Array, neox: bool, sign: float) -> None:
        _check(_native.rope(self._handle, x, cos, sin, positions, neox, sign))

    def attention_forward(
        self, out: Array, lse: Array, q: Array, k: Array, v: Array, end: Array, position: Array, scale: float,
        window: int = 0, precision: str = "exact",
    ) -> None:  # fmt: skip
        _check(_native.attention_forward(self._at(precision), out, lse, q, k, v, end, position, scale, window))

    def attention_backward(
        self, dq: Array, dk: Array, dv: Array, delta: Array, dout: Array, out: Array, lse: Array, q: Array, k: Array,
        v: Array, end: Array, position: Array, scale: float, window: int = 0, precision: str = "exact",
    ) -> None:  # fmt: skip
        handle = self._at(precision)
        _check(_native.attention_backward(handle, dq, dk, dv, delta, dout, out, lse, q, k, v, end, position, scale,
                                          window))

    def glu_forward(self, out: Array, gate: Array, up: Array, kind: str) -> None:
        _check(_native.glu_forward(self._handle, out, gate, up, _activation(kind)))

    def glu_backward(
        self, dgate: Array, dup: Array, act: Array, dout: Array, gate: Array, up: Array, kind: str,
    ) -> None:  # fmt: skip
        _check(_native.glu_backward(self._handle, dgate, dup, act, dout, gate, up, _activation(kind)))

    def add_bias(self, x: Array, bias: Array) -> None:
        _check(_native.add_bias(self._handle, x, bias))

    def copy(self, out: Array, inp: Array) -> None:
        _check(_native.copy(self._handle, out, inp))

    def add(self, x: Array, y: Array) -> None:
        _check(_native.add(self._handle, x, y))

    def dropout(self, out: Array, inp: Array, p: float, seed: int, accumulate: bool = False) -> None:
        _check(_native.dropout(self._handle, out, inp, p, seed, accumulate))

    def scale(self, x: Array, s: float) -> None:
        _check(_native.scale(self._handle, x, s))

    def head_forward(
        self, logp: Array, best: Array | None, logits: Array, state: Array, h: Array, w: Array, fmt: str,
        targets: Array, part: tuple[int, int] = WHOLE, precision: str = "exact",
    ) -> None:  # fmt: skip
        _check(_native.head_forward(self._at(precision), logp, best, logits, state, h, w, _format(fmt), targets, *part))

    def head_backward(
        self, dh: Array, logp: Array, logits: Array, e: Array, state: Array, h: Array, w: Array, fmt: str,
        targets: Array, a: Array, part: tuple[int, int] = WHOLE, precision: str = "exact",
    ) -> None:  # fmt: skip
        handle = self._at(precision)
        _check(_native.head_backward(handle, dh, logp, logits, e, state, h, w, _format(fmt), targets, a, *part))

    def cache_store(self, keys: Array, values: Array, k: Array, v: Array, slot: Array) -> None:
        _check(_native.cache_store(self._handle, keys, values, k, v, slot))

    def attention_cached(
        self, out: Array, q: Array, keys: Array, values: Array, path: Array, scale: float, window: int = 0,
    ) -> None:  # fmt: skip
        _check(_native.attention_cached(self._handle, out, q, keys, values, path, scale, window))

    def head_sample(
        self, token: Array, logp: Array, drawn: Array, logits: Array, state: Array, h: Array, w: Array, fmt: str,
        key: Array, limit: Array | None, temperature: float, part: tuple[int, int] = WHOLE, precision: str = "exact",
    ) -> None:  # fmt: skip
        handle = self._at(precision)
        _check(_native.head_sample(handle, token, logp, drawn, logits, state, h, w, _format(fmt), key, limit,
                                   temperature, *part))

    def head_top(
        self, top: Array, lse: Array, logits: Array, state: Array, h: Array, w: Array, fmt: str, limit: Array,
        part: tuple[int, int] = WHOLE, precision: str = "exact",
    ) -> None:  # fmt: skip
        handle = self._at(precision)
        _check(_native.head_top(handle, top, lse, logits, state, h, w, _format(fmt), limit, *part))

    def adamw(
        self, param: Array, grad: Array, m: Array, v: Array, lr: float, beta1: float, beta2: float, eps: float,
        weight_decay: float, step: int,
    ) -> None:  # fmt: skip
        _check(_native.adamw(self._handle, param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step))

    def adamw8(
        self, param: Array, grad: Array, moments: Array, lr: float, beta1: float, beta2: float, eps: float,
        weight_decay: float, step: int, seed: int,
    ) -> None:  # fmt: skip
        _check(_native.adamw8(self._handle, param, grad, moments, lr, beta1, beta2, eps, weight_decay, step, seed))

    def sum_squares(self, x: Array) -> float:
        out = np.empty(1, np.float64)
        _check(_native.sum_squares(self._handle, out, x))
        return float(out[0])
