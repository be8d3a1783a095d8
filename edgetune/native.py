"""The only door to the C extension: one function a C function of native/et.h, outputs first, then inputs.

Arrays are C-contiguous float32 unless said otherwise, activations float32 or (as uint16) bf16, each array for itself.
Nothing is copied: a view of an arena is as good as an array. Shapes: T tokens, D model width, H heads, G key/value
heads, C head width, V vocabulary, R rank; N rows and K columns of a weight. A weight is its GGUF bytes, uint8 [bytes],
with the name of its format in `FORMATS` (for "F32" a float32 array will do too). Outputs are overwritten unless
`accumulate` is set or the text says that they accumulate.

All raise ValueError or TypeError, naming the argument, for a wrong type, shape, contiguity or range, and let go of the
GIL while they compute. Results do not depend on the number of threads.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _native
from .errors import UnsupportedError

Array = NDArray[Any]


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
"""What edgetune computes with, by name."""

ACTIVATIONS = {"silu": 0, "gelu": 1}

PRECISIONS = {"exact": 0, "fast": 1, "int8": 2}
"""How products with frozen weights are computed; see Context."""

_NO_ISA = -4  # as in native/et.h, like the codes below
_CODES = {
    -1: "a size is zero or negative, or not a multiple of what the format needs, or a number is out of its range",
    -2: "unknown weight format",
    -3: "a token, target, position or document start is out of its range",
}


def _check(code: int) -> None:
    if code:
        raise ValueError(_CODES.get(code, f"native code {code}"))


def _format(name: str) -> int:
    if name not in FORMATS:
        raise ValueError(f"unknown weight format {name!r}: known are {', '.join(FORMATS)}")
    return FORMATS[name].id


def _activation(kind: str) -> int:
    if kind not in ACTIVATIONS:
        raise ValueError(f"unknown activation {kind!r}: known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[kind]


def isa_names() -> list[str]:
    """The instruction sets that were compiled in, best first, "scalar" last."""
    return [name for name, _ in _native.rows()]


def usable(isa: str) -> bool:
    """Whether CPU and OS can run `isa`, and the environment variable EDGETUNE_ISA does not hide it."""
    return dict(_native.rows()).get(isa, False)


def cpu_features() -> str:
    """What detection found, space separated."""
    return _native.cpu_features()


def scratch_bytes(threads: int) -> int:
    """Bytes of scratch that a Context with so many threads needs."""
    size = _native.scratch_bytes(threads)
    if not size:
        raise ValueError(f"threads must be 1 to 1024, not {threads}")
    return size


class Context:
    """An instruction set, a pool of threads, and the scratch that all ops pack into.

    `isa` None takes the best that CPU and EDGETUNE_ISA allow; `scratch` is a writable uint8 array of
    `scratch_bytes(threads)`, allocated if None. Runs one op at a time: RuntimeError if two threads call at once.
    Raises UnsupportedError for an instruction set that cannot be had here.

    `precision` holds for the products of matmul_*, attention_* and the head: "exact" float; "fast" bf16 where this
    instruction set multiplies it quickly, else float forward and, but for the head, "int8" backward; "int8" 8-bit
    integers where it has dot products of bytes, for weights that are not F32 and sums over multiples of 32, and fast
    elsewhere. `products` says which numbers these are here, tests/test_precision.py what they do to a gradient.
    """

    def __init__(
        self, threads: int, isa: str | None = None, scratch: Array | None = None, precision: str = "exact"
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}: known are {', '.join(PRECISIONS)}")
        need = scratch_bytes(threads)
        if scratch is None:
            scratch = np.zeros(need, np.uint8)
        if scratch.nbytes < need:
            raise ValueError(f"scratch has {scratch.nbytes} bytes, {threads} threads need {need}")
        handle = _native.context(threads, isa, PRECISIONS[precision], scratch)
        if handle == _NO_ISA:
            have = [name for name in isa_names() if usable(name)]
            wanted = f"instruction set {isa!r}" if isa else "an instruction set that EDGETUNE_ISA allows"
            raise UnsupportedError(f"this CPU or build does not have {wanted}", f"there is {', '.join(have) or 'none'}")
        if isinstance(handle, int):
            raise MemoryError(f"could not start {threads} threads")
        self.threads = self._working = threads
        self.isa = _native.context_isa(handle)
        self._precision = precision
        self._handle = handle

    @property
    def precision(self) -> str:
        """May be changed between two ops."""
        return self._precision

    @precision.setter
    def precision(self, precision: str) -> None:
        if precision != self._precision:
            _native.set_precision(self._handle, PRECISIONS[precision])
            self._precision = precision

    @property
    def working(self) -> int:
        """How many of the threads work; the others sleep. May be changed between two ops; results do not change."""
        return self._working

    @working.setter
    def working(self, threads: int) -> None:
        if _native.set_threads(self._handle, threads):
            raise ValueError(f"{threads} threads cannot work: this context has {self.threads}")
        self._working = threads

    @property
    def products(self) -> str:
        """What is multiplied in, such as "bf16 forward, bf16 backward"."""
        forward, backward = _native.context_products(self._handle)
        return f"{forward} forward, {backward} backward"


def peak(ctx: Context, backward: bool = False) -> float:
    """Operations a second (two for a multiplication and its sum) that a loop in registers reaches on all threads.

    In the numbers that this context's products with quantized weights use; the best of three runs of 20 ms or more.
    """
    n, seconds = 10_000, 0.0
    while seconds < 0.02:
        n *= 2
        began = time.perf_counter()
        _native.register_loop(ctx._handle, backward, n)
        seconds = time.perf_counter() - began
    rates = []
    for _ in range(3):
        began = time.perf_counter()
        operations = _native.register_loop(ctx._handle, backward, n)
        rates.append(operations / (time.perf_counter() - began))
    return max(rates)


LowRank = tuple[Array | None, Array | None]
"""LoRA's part of a product, float32: x [T, R] and y, [N, R] forward (transposed) or [R, K] backward; None: absent."""


def matmul_forward(
    ctx: Context, out: Array, inp: Array, w: Array, fmt: str, scale: float = 1.0, accumulate: bool = False,
    low_rank: LowRank = (None, None),
) -> None:  # fmt: skip
    """out [T, N] = scale * (inp [T, K] . w [N, K] transposed + low_rank). Where accumulating, out is float32."""
    _check(_native.matmul_forward(ctx._handle, out, inp, w, _format(fmt), *low_rank, scale, accumulate))


def matmul_backward(
    ctx: Context, dinp: Array, dout: Array, w: Array, fmt: str, scale: float = 1.0, accumulate: bool = False,
    low_rank: LowRank = (None, None),
) -> None:  # fmt: skip
    """dinp [T, K] = scale * (dout [T, N] . w [N, K] + low_rank). Where accumulating, dinp is float32."""
    _check(_native.matmul_backward(ctx._handle, dinp, dout, w, _format(fmt), *low_rank, scale, accumulate))


def matmul_dweight(ctx: Context, dw: Array, dout: Array, inp: Array, scale: float = 1.0) -> None:
    """dw [N, K] += scale * dout [T, N] transposed . inp [T, K]; dw is float32 and accumulates."""
    _check(_native.matmul_dweight(ctx._handle, dw, dout, inp, scale))


def dequantize(ctx: Context, out: Array, w: Array, fmt: str) -> None:
    """out (any shape) = the values of the weights w, in order."""
    _check(_native.dequantize(ctx._handle, out, w, _format(fmt)))


def embed(ctx: Context, out: Array, tokens: Array, w: Array, fmt: str, scale: float = 1.0) -> None:
    """out [T, D] = scale * rows tokens [T] (int32) of w [V, D]."""
    _check(_native.embed(ctx._handle, out, tokens, w, _format(fmt), scale))


def rmsnorm_forward(ctx: Context, out: Array, rstd: Array, inp: Array, weight: Array, eps: float) -> None:
    """out = inp * rstd * weight [D] for each run of D values, rstd = 1 / sqrt(mean(inp^2) + eps).

    out and inp are activations; out may be inp.
    """
    _check(_native.rmsnorm_forward(ctx._handle, out, rstd, inp, weight, eps))


def rmsnorm_backward(
    ctx: Context, dinp: Array, dout: Array, inp: Array, weight: Array, rstd: Array, accumulate: bool = False
) -> None:
    """dinp = gradient of rmsnorm for its input; the weight is frozen.

    dinp, dout and inp are activations; dinp may be dout when not accumulating.
    """
    _check(_native.rmsnorm_backward(ctx._handle, dinp, dout, inp, weight, rstd, accumulate))


def rope(ctx: Context, x: Array, cos: Array, sin: Array, positions: Array, neox: bool, sign: float) -> None:
    """Rotates x [T, H, C], activations, in place by cos, sin [P, n_rot/2] at row positions [T] (int32).

    neox False: pairs (2i, 2i+1); True: pairs (i, i + n_rot/2). sign 1 forward, -1 backward.
    """
    _check(_native.rope(ctx._handle, x, cos, sin, positions, neox, sign))


def attention_forward(
    ctx: Context, out: Array, lse: Array, q: Array, k: Array, v: Array, start: Array, scale: float, window: int = 0
) -> None:
    """Causal grouped-query attention: out, q [T, H, C]; k, v [T, G, C]; lse [H, T] is kept for backward.

    Token t sees tokens j with max(start[t], t - window + 1) <= j <= t; window 0 is none. start [T] (int32) is the index
    of the first token of t's document. C is at most 256. out, q, k and v may each be bf16 (as uint16). Where the
    context is not exact and the CPU multiplies bf16, all products here are of numbers rounded to bf16.
    """
    _check(_native.attention_forward(ctx._handle, out, lse, q, k, v, start, scale, window))


def attention_backward(
    ctx: Context, dq: Array, dk: Array, dv: Array, delta: Array, dout: Array, out: Array, lse: Array, q: Array,
    k: Array, v: Array, start: Array, scale: float, window: int = 0,
) -> None:  # fmt: skip
    """dq [T, H, C], dk and dv [T, G, C] of attention_forward; delta [H, T] is work space. All but it and lse
    may each be bf16."""
    _check(_native.attention_backward(ctx._handle, dq, dk, dv, delta, dout, out, lse, q, k, v, start, scale, window))


def glu_forward(ctx: Context, out: Array, gate: Array, up: Array, kind: str) -> None:
    """out = act(gate) * up, all activations; kind "silu" or "gelu" (tanh-approximated). out may be gate or up."""
    _check(_native.glu_forward(ctx._handle, out, gate, up, _activation(kind)))


def glu_backward(
    ctx: Context, dgate: Array, dup: Array, act: Array, dout: Array, gate: Array, up: Array, kind: str
) -> None:
    """dgate and dup of glu_forward, and act, which it gave; dgate and dup may be dout or their own forward input."""
    _check(_native.glu_backward(ctx._handle, dgate, dup, act, dout, gate, up, _activation(kind)))


def add_bias(ctx: Context, x: Array, bias: Array) -> None:
    """x [T, N], activations, += bias [N]."""
    _check(_native.add_bias(ctx._handle, x, bias))


def copy(ctx: Context, out: Array, inp: Array) -> None:
    """out = inp, from float32 to bf16, back, or as it is."""
    _check(_native.copy(ctx._handle, out, inp))


def add(ctx: Context, x: Array, y: Array) -> None:
    """x += y."""
    _check(_native.add(ctx._handle, x, y))


def dropout(ctx: Context, out: Array, inp: Array, p: float, seed: int, accumulate: bool = False) -> None:
    """out = inp * keep / (1 - p), keep a pure function of seed and index, so backward calls it on dout.

    out and inp are activations; out may be inp when not accumulating.
    """
    _check(_native.dropout(ctx._handle, out, inp, p, seed, accumulate))


def scale(ctx: Context, x: Array, s: float) -> None:
    """x *= s."""
    _check(_native.scale(ctx._handle, x, s))


HEAD_STATE = 4
"""Floats a token of the head's work space `state`."""
WHOLE = (0, -1)
"""All of the vocabulary."""


def head_forward(
    ctx: Context, logp: Array, best: Array | None, logits: Array, state: Array, h: Array, w: Array, fmt: str,
    targets: Array, part: tuple[int, int] = WHOLE,
) -> None:  # fmt: skip
    """logp [T] = log softmax(h [T, D] . w [V, D] transposed) at targets [T] (int32); best [T] (int32) = arg max.

    h may be bf16. Work space: logits [T, B] for B entries of the vocabulary at a time, state [T, HEAD_STATE]. `part` is
    of the vocabulary, first entry and end: of several calls from 0 to V, arrays left as they are, the last finishes.
    """
    _check(_native.head_forward(ctx._handle, logp, best, logits, state, h, w, _format(fmt), targets, *part))


def head_backward(
    ctx: Context, dh: Array, logp: Array, logits: Array, e: Array, state: Array, h: Array, w: Array, fmt: str,
    targets: Array, a: Array, part: tuple[int, int] = WHOLE,
) -> None:  # fmt: skip
    """dh [T, D] = sum over v of a_t (softmax(z_t) - onehot(target_t))_v w_v, where a [T] = -dL/dlogp; logp as above.

    e [T, B], float32 or bf16, is work space as well; float32 may be logits.
    """
    _check(_native.head_backward(ctx._handle, dh, logp, logits, e, state, h, w, _format(fmt), targets, a, *part))


def adamw(
    ctx: Context, param: Array, grad: Array, m: Array, v: Array, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float, step: int,
) -> None:  # fmt: skip
    """One step of decoupled AdamW (Loshchilov & Hutter 2019) on param, m and v; step counts from 1."""
    _check(_native.adamw(ctx._handle, param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step))


MOMENTS = 256
"""Parameters that share the scales of their moments in 8 bits."""
MOMENT_BYTES = 520
"""Bytes that the moments of MOMENTS parameters take."""


def adamw8(
    ctx: Context, param: Array, grad: Array, moments: Array, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float, step: int, seed: int,
) -> None:  # fmt: skip
    """The same with m and v in 8 bits: moments uint8 [ceil(n / MOMENTS), MOMENT_BYTES], of any shape; zeros at first.

    After Dettmers et al. 2022 (2110.02861); native/et.h has the codes. v is rounded at random, as seed and place say.
    """
    _check(_native.adamw8(ctx._handle, param, grad, moments, lr, beta1, beta2, eps, weight_decay, step, seed))


def sum_squares(ctx: Context, x: Array) -> float:
    """The sum of x^2, in double, in an order that does not depend on the threads."""
    out = np.empty(1, np.float64)
    _check(_native.sum_squares(ctx._handle, out, x))
    return float(out[0])
