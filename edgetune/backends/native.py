"""The ops by the C extension: a method for each function of native/et.h. `base` documents them.

A context of the extension runs them, on the CPU (cpu.py) or on a device (cuda.py); only these three import it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import _native
from .base import OPS, WHOLE, Array, LowRank, Ops, Tape


class Format(NamedTuple):
    """A format of weights in GGUF: `size` bytes hold `block` consecutive weights of a row. `id` is GGUF's number.

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

GLU_KINDS = {"silu": 0, "gelu": 1, "gelu_erf": 2, "sigmoid": 3}

PRECISIONS = {"exact": 0, "fast": 1, "int8": 2}

_DEVICE_FAILED = -6  # as in native/et.h, like these
_CODES = {
    -1: "a size is zero or negative, or not a multiple of what the format needs, or a number is out of its range",
    -2: "unknown weight format",
    -3: "a token, target or position is out of its range, or the tokens are no forest",
}


def _format(name: str) -> int:
    if name not in FORMATS:
        raise ValueError(f"unknown weight format {name!r}: known are {', '.join(FORMATS)}")
    return FORMATS[name].id


def _activation(kind: str) -> int:
    if kind not in GLU_KINDS:
        raise ValueError(f"unknown activation {kind!r}: known are {', '.join(GLU_KINDS)}")
    return GLU_KINDS[kind]


class NativeOps(Ops, ABC):
    """The ops on a context, opened by the first that needs it. name, needs: for errors: "CPU", "2 threads need"."""

    def __init__(self, name: str, needs: str) -> None:
        self._name = name
        self._needs = needs
        self._context: _native._Context | None = None
        self._precision = "exact"  # that the context is set to
        self._scratch: Array | None = None

    @abstractmethod
    def _open(self, precision: int) -> _native._Context:
        """A new context at this precision."""

    @property
    @abstractmethod
    def scratch_bytes(self) -> int:
        """See base.Backend."""

    def use_scratch(self, scratch: Array) -> None:
        """Raises ValueError for a smaller array, RuntimeError after the first op."""
        if self._context is not None:
            raise RuntimeError(f"this {self._name} computes already: its scratch must be given before the first op")
        if scratch.nbytes < self.scratch_bytes:
            raise ValueError(f"scratch has {scratch.nbytes} bytes, {self._needs} {self.scratch_bytes}")
        self._scratch = scratch

    def _failure(self) -> Exception:
        """Why the device of the context failed; for a backend that has one."""
        return RuntimeError("the device failed")

    @property
    def _handle(self) -> _native._Context:
        if self._context is None:
            self._context = self._open(PRECISIONS[self._precision])
        return self._context

    def _at(self, precision: str) -> _native._Context:
        """The context at this precision."""
        if precision != self._precision:
            if precision not in PRECISIONS:
                raise ValueError(f"unknown precision {precision!r}: known are {', '.join(PRECISIONS)}")
            _native.set_precision(self._handle, PRECISIONS[precision])
            self._precision = precision
        return self._handle

    def _check(self, code: int) -> None:
        if code == _DEVICE_FAILED:
            raise self._failure()
        if code:
            raise ValueError(_CODES.get(code, f"native code {code}"))

    @property
    def isa(self) -> str:
        return _native.context_isa(self._handle)

    def products(self, precision: str) -> str:
        forward, backward = _native.context_products(self._at(precision))
        return f"{forward} forward, {backward} backward"

    def synchronize(self) -> None:
        if self._context is not None:
            self._check(_native.synchronize(self._context))

    def run_tape(self, tape: _native._Tape, tokens: int, ops: Callable[[], None]) -> None:
        """See Tape.run. Where an op was replaced in this object, to be watched, no tape runs."""
        if not _OPS.isdisjoint(vars(self)):
            ops()
            return
        code = _native.tape_run(self._handle, tape, tokens)
        if code is not None:
            self._check(code)
            return
        _native.tape_begin(self._handle, tape, tokens)
        is_whole = False
        try:
            ops()
            is_whole = True
        finally:
            _native.tape_end(self._handle, is_whole)

    # ---- ops ----------------------------------------------------------------------------------------------------

    def matmul_forward(self, out: Array, inp: Array, w: Array, fmt: str, scale: float = 1.0, accumulate: bool = False,
                       low_rank: LowRank = (None, None), precision: str = "exact") -> None:
        handle = self._at(precision)
        self._check(_native.matmul_forward(handle, out, inp, w, _format(fmt), *low_rank, scale, accumulate))

    def matmul_backward(self, dinp: Array, dout: Array, w: Array, fmt: str, scale: float = 1.0,
                        accumulate: bool = False, low_rank: LowRank = (None, None), precision: str = "exact") -> None:
        handle = self._at(precision)
        self._check(_native.matmul_backward(handle, dinp, dout, w, _format(fmt), *low_rank, scale, accumulate))

    def matmul_dweight(self, dw: Array, dout: Array, inp: Array, scale: float = 1.0, precision: str = "exact") -> None:
        self._check(_native.matmul_dweight(self._at(precision), dw, dout, inp, scale))

    def dequantize(self, out: Array, w: Array, fmt: str) -> None:
        self._check(_native.dequantize(self._handle, out, w, _format(fmt)))

    def embed(self, out: Array, tokens: Array, w: Array, fmt: str, scale: float = 1.0) -> None:
        self._check(_native.embed(self._handle, out, tokens, w, _format(fmt), scale))

    def rmsnorm_forward(self, out: Array, rstd: Array, inp: Array, weight: Array, eps: float) -> None:
        self._check(_native.rmsnorm_forward(self._handle, out, rstd, inp, weight, eps))

    def rmsnorm_backward(self, dinp: Array, dout: Array, inp: Array, weight: Array, rstd: Array,
                         accumulate: bool = False) -> None:
        self._check(_native.rmsnorm_backward(self._handle, dinp, dout, inp, weight, rstd, accumulate))

    def layernorm_forward(self, out: Array, mean: Array, rstd: Array, inp: Array, weight: Array, bias: Array | None,
                          eps: float) -> None:
        self._check(_native.layernorm_forward(self._handle, out, mean, rstd, inp, weight, bias, eps))

    def layernorm_backward(self, dinp: Array, dout: Array, inp: Array, weight: Array, mean: Array, rstd: Array,
                           accumulate: bool = False) -> None:
        self._check(_native.layernorm_backward(self._handle, dinp, dout, inp, weight, mean, rstd, accumulate))

    def rope(self, x: Array, cos: Array, sin: Array, positions: Array, neox: bool, sign: float) -> None:
        self._check(_native.rope(self._handle, x, cos, sin, positions, neox, sign))

    def attention_forward(self, out: Array, lse: Array, q: Array, k: Array, v: Array, end: Array, position: Array,
                          scale: float, window: int = 0, precision: str = "exact", begin: Array | None = None) -> None:
        handle = self._at(precision)
        self._check(_native.attention_forward(handle, out, lse, q, k, v, begin, end, position, scale, window))

    def attention_backward(self, dq: Array, dk: Array, dv: Array, delta: Array, dout: Array, out: Array, lse: Array,
                           q: Array, k: Array, v: Array, end: Array, position: Array, scale: float, window: int = 0,
                           precision: str = "exact", begin: Array | None = None) -> None:
        handle = self._at(precision)
        self._check(_native.attention_backward(handle, dq, dk, dv, delta, dout, out, lse, q, k, v, begin, end, position,
                                               scale, window))

    def conv_forward(self, out: Array, inp: Array, w: Array, before: Array) -> None:
        self._check(_native.conv_forward(self._handle, out, inp, w, before))

    def conv_backward(self, dinp: Array, sums: Array, dout: Array, inp: Array, w: Array, before: Array) -> None:
        self._check(_native.conv_backward(self._handle, dinp, sums, dout, inp, w, before))

    def causal_conv_forward(self, out: Array, inp: Array, w: Array, bias: Array | None, before: Array,
                            first: int = 0) -> None:
        self._check(_native.causal_conv_forward(self._handle, out, inp, w, bias, before, first))

    def causal_conv_backward(self, dinp: Array, sums: Array, dout: Array, inp: Array, w: Array, bias: Array | None,
                             before: Array, first: int = 0) -> None:
        self._check(_native.causal_conv_backward(self._handle, dinp, sums, dout, inp, w, bias, before, first))

    def delta_forward(self, out: Array, states: Array, qkv: Array, beta: Array, alpha: Array, a: Array, dt: Array,
                      before: Array, pieces: Array, eps: float, precision: str = "exact") -> None:
        handle = self._at(precision)
        self._check(_native.delta_forward(handle, out, states, qkv, beta, alpha, a, dt, before, pieces, eps))

    def delta_backward(self, dqkv: Array, dbeta: Array, dalpha: Array, dstates: Array, dout: Array, qkv: Array,
                       beta: Array, alpha: Array, a: Array, dt: Array, states: Array, before: Array, pieces: Array,
                       eps: float, precision: str = "exact") -> None:
        handle = self._at(precision)
        self._check(_native.delta_backward(handle, dqkv, dbeta, dalpha, dstates, dout, qkv, beta, alpha, a, dt, states,
                                           before, pieces, eps))

    def ssm_forward(self, out: Array, states: Array, steps: Array, inp: Array, rows: Array, bias: Array, a: Array,
                    skip: Array, before: Array, pieces: Array, state: int, precision: str = "exact") -> None:
        handle = self._at(precision)
        self._check(_native.ssm_forward(handle, out, states, steps, inp, rows, bias, a, skip, before, pieces, state))

    def ssm_backward(self, dinp: Array, drows: Array, states: Array, dstates: Array, steps: Array, dout: Array,
                     inp: Array, rows: Array, bias: Array, a: Array, skip: Array, before: Array, pieces: Array,
                     state: int, precision: str = "exact") -> None:
        handle = self._at(precision)
        self._check(_native.ssm_backward(handle, dinp, drows, states, dstates, steps, dout, inp, rows, bias, a, skip,
                                         before, pieces, state))

    def glu_forward(self, out: Array, gate: Array, up: Array, kind: str) -> None:
        self._check(_native.glu_forward(self._handle, out, gate, up, _activation(kind)))

    def glu_backward(self, dgate: Array, dup: Array, act: Array, dout: Array, gate: Array, up: Array,
                     kind: str) -> None:
        self._check(_native.glu_backward(self._handle, dgate, dup, act, dout, gate, up, _activation(kind)))

    def gelu_forward(self, out: Array, inp: Array) -> None:
        self._check(_native.gelu_forward(self._handle, out, inp))

    def gelu_backward(self, dinp: Array, act: Array, dout: Array, inp: Array) -> None:
        self._check(_native.gelu_backward(self._handle, dinp, act, dout, inp))

    def add_bias(self, x: Array, bias: Array) -> None:
        self._check(_native.add_bias(self._handle, x, bias))

    def copy(self, out: Array, inp: Array) -> None:
        self._check(_native.copy(self._handle, out, inp))

    def add(self, x: Array, y: Array) -> None:
        self._check(_native.add(self._handle, x, y))

    def dropout(self, out: Array, inp: Array, p: float, seed: int, accumulate: bool = False) -> None:
        self._check(_native.dropout(self._handle, out, inp, p, seed, accumulate))

    def scale(self, x: Array, s: float) -> None:
        self._check(_native.scale(self._handle, x, s))

    def head_forward(self, logp: Array, best: Array | None, logits: Array, state: Array, h: Array, w: Array, fmt: str,
                     targets: Array, part: tuple[int, int] = WHOLE, precision: str = "exact", cap: float = 0.0) -> None:
        handle = self._at(precision)
        self._check(_native.head_forward(handle, logp, best, logits, state, h, w, _format(fmt), targets, cap, *part))

    def head_backward(self, dh: Array, logp: Array, logits: Array, e: Array, state: Array, h: Array, w: Array, fmt: str,
                      targets: Array, a: Array | None, part: tuple[int, int] = WHOLE,
                      precision: str = "exact", cap: float = 0.0) -> None:
        handle = self._at(precision)
        self._check(_native.head_backward(handle, dh, logp, logits, e, state, h, w, _format(fmt), targets, a, cap,
                                          *part))

    def cache_store(self, keys: Array, values: Array, k: Array, v: Array, slot: Array) -> None:
        self._check(_native.cache_store(self._handle, keys, values, k, v, slot))

    def attention_cached(self, out: Array, q: Array, keys: Array, values: Array, path: Array, scale: float,
                         window: int = 0) -> None:
        self._check(_native.attention_cached(self._handle, out, q, keys, values, path, scale, window))

    def head_sample(self, token: Array, logp: Array, drawn: Array, logits: Array, state: Array, h: Array, w: Array,
                    fmt: str, key: Array, limit: Array | None, temperature: float, part: tuple[int, int] = WHOLE,
                    precision: str = "exact", cap: float = 0.0) -> None:
        handle = self._at(precision)
        self._check(_native.head_sample(handle, token, logp, drawn, logits, state, h, w, _format(fmt), key, limit,
                                        temperature, cap, *part))

    def head_top(self, top: Array, lse: Array, logits: Array, state: Array, h: Array, w: Array, fmt: str, limit: Array,
                 part: tuple[int, int] = WHOLE, precision: str = "exact", cap: float = 0.0) -> None:
        handle = self._at(precision)
        self._check(_native.head_top(handle, top, lse, logits, state, h, w, _format(fmt), limit, cap, *part))

    def adamw(self, param: Array, grad: Array, m: Array, v: Array, lr: float, beta1: float, beta2: float, eps: float,
              weight_decay: float, step: int) -> None:
        self._check(_native.adamw(self._handle, param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step))

    def adamw8(self, param: Array, grad: Array, moments: Array, lr: float, beta1: float, beta2: float, eps: float,
               weight_decay: float, step: int, seed: int) -> None:
        self._check(_native.adamw8(self._handle, param, grad, moments, lr, beta1, beta2, eps, weight_decay, step, seed))

    def sum_squares(self, x: Array) -> float:
        out = np.empty(1, np.float64)
        self._check(_native.sum_squares(self._handle, out, x))
        return float(out[0])


class NativeTape(Tape):
    """Calls of a NativeOps, as the extension keeps them."""

    def __init__(self, of: NativeOps) -> None:
        self._of = of
        self._tape = _native.tape()

    def run(self, tokens: int, ops: Callable[[], None]) -> None:
        self._of.run_tape(self._tape, tokens, ops)


_OPS = frozenset(OPS)
