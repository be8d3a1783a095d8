"""The contract of a backend, the device that computes. An op is a method, outputs first, then inputs.

To add one, write a class that is a Backend in a file of this folder: the ops, memory for arrays (`allocate`), and
weights in the form that its ops read (`upload`). It is passed as `Trainer(ops=...)`. The trainer reads
`scratch_bytes`, allocates them with everything else, and calls `use_scratch` before the first op. `cpu.py` and
`cuda.py` are the backends; tests/backends/test_backend.py has one that counts the calls of another.

Arrays are numpy arrays over memory that the device and this process both reach (on a Jetson, its unified memory),
C-contiguous float32 unless said otherwise; activations are float32 or (as uint16) bf16, which may differ from array to
array. All that ops are given is from the backend: views of what it allocated, or what `upload`, `place` and `empty`
made. On the CPU these copy nothing.

Ops run in their order, and may return before they are done. After `synchronize` the process may read what they wrote,
and write again to what they read or wrote; before it, it may do neither. It may always read what only it has written.

Shapes: T tokens, D model width, H heads, G key/value heads,
C head width, V vocabulary, R rank; N rows and K columns of a weight. A weight is what `upload` made of its GGUF bytes,
with the name of its format (for "F32" also a float32 array). Outputs are overwritten unless `accumulate` is set or the
docstring says that they accumulate.

All ops raise ValueError or TypeError, naming the argument, for a wrong type, shape, contiguity or range, and do not
hold the GIL while they compute. Results do not depend on the number of threads.

`precision` of an op says how its products with frozen weights are computed: "exact" float; "fast" bf16 where the
device multiplies it quickly, else float forward and, but for the head, "int8" backward; "int8" 8-bit integers where it
has dot products of bytes, for weights that are not F32 and sums over multiples of 32, else as fast. `products`
names these numbers for a device; tests/backends/test_precision.py measures their effect on gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]

LowRank = tuple[Array | None, Array | None]
"""LoRA's part of a product, float32: x [T, R] and y, [N, R] forward (transposed) or [R, K] backward; None: absent."""

HEAD_STATE = 4
"""Floats a token of the head's work space `state`."""
SAMPLE_STATE = 5
"""The same of the ops that draw tokens."""
CACHE = 16
"""Tokens in a block of a cache of keys and values."""
WHOLE = (0, -1)
"""All of the vocabulary."""
MOMENTS = 256
"""Parameters that share the scales of their moments in 8 bits."""
MOMENT_BYTES = 520
"""Bytes that MOMENTS parameters' moments take in 8 bits."""


Recorded = Callable[[], None]
"""Runs the ops again that `Backend.record` was given, as long as the memory that they were called with is there."""


def floats(array: Array) -> NDArray[np.float32]:
    """An array of float32 or bf16 (as uint16) as float32, for numpy: of the second a copy."""
    if array.dtype != np.uint16:
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)


def bf16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The inverse of `floats`, rounded to nearest even; of finite numbers."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


class Tape(Protocol):
    """Calls of ops that were written down."""

    def run(self, tokens: int, ops: Callable[[], None]) -> None:
        """Runs `ops`: calls it while its ops are written, and later runs these alone.

        `ops` calls ops and does nothing else. They are the same with the same arguments each time, on the same memory,
        but for sizes, which are fixed or a multiple of `tokens`. If sizes or arguments turn out to differ otherwise,
        `ops` is always called. Raises what the ops raise.
        """


class Memory(Protocol):
    """One allocation."""

    @property
    def array(self) -> Array:
        """All of it, uint8, zeros at first."""

    def discard(self, begin: int) -> None:
        """Releases the bytes from `begin`, a multiple of the page size, to the end. They read as zeros afterwards.

        What ops still do with them is done before.
        """


class Ops(Protocol):
    """The operations."""

    def matmul_forward(self, out: Array, inp: Array, w: Array, fmt: str, scale: float = 1.0, accumulate: bool = False,
                       low_rank: LowRank = (None, None), precision: str = "exact") -> None:
        """out [T, N] = scale * (inp [T, K] . w [N, K] transposed + low_rank). Where accumulating, out is float32."""

    def matmul_backward(self, dinp: Array, dout: Array, w: Array, fmt: str, scale: float = 1.0,
                        accumulate: bool = False, low_rank: LowRank = (None, None), precision: str = "exact") -> None:
        """dinp [T, K] = scale * (dout [T, N] . w [N, K] + low_rank). Where accumulating, dinp is float32."""

    def matmul_dweight(self, dw: Array, dout: Array, inp: Array, scale: float = 1.0, precision: str = "exact") -> None:
        """dw [N, K] += scale * dout [T, N] transposed . inp [T, K]; dw is float32 and accumulates."""

    def dequantize(self, out: Array, w: Array, fmt: str) -> None:
        """out (any shape) = the values of the weights w, in order."""

    def embed(self, out: Array, tokens: Array, w: Array, fmt: str, scale: float = 1.0) -> None:
        """out [T, D] = scale * rows tokens [T] (int32) of w [V, D]."""

    def rmsnorm_forward(self, out: Array, rstd: Array, inp: Array, weight: Array, eps: float) -> None:
        """out = inp * rstd * weight [D] for each run of D values, rstd = 1 / sqrt(mean(inp^2) + eps).

        out and inp are activations; out may be inp.
        """

    def rmsnorm_backward(self, dinp: Array, dout: Array, inp: Array, weight: Array, rstd: Array,
                         accumulate: bool = False) -> None:
        """dinp = gradient of rmsnorm for its input; the weight is frozen.

        dinp, dout and inp are activations; dinp may be dout when not accumulating.
        """

    def layernorm_forward(self, out: Array, mean: Array, rstd: Array, inp: Array, weight: Array, bias: Array | None,
                          eps: float) -> None:
        """out = (inp - mean) * rstd * weight [D] + bias [D] for each run of D values, rstd = 1 / sqrt(variance + eps).

        out and inp are activations; out may be inp.
        """

    def layernorm_backward(self, dinp: Array, dout: Array, inp: Array, weight: Array, mean: Array, rstd: Array,
                           accumulate: bool = False) -> None:
        """dinp = gradient of layernorm for its input; weight and bias are frozen.

        dinp, dout and inp are activations; dinp may be dout when not accumulating.
        """

    def rope(self, x: Array, cos: Array, sin: Array, positions: Array, neox: bool, sign: float) -> None:
        """Rotates x [T, H, C], activations, in place by cos, sin [P, n_rot/2] at row positions [T] (int32).

        neox False: pairs (2i, 2i+1); True: pairs (i, i + n_rot/2). sign 1 forward, -1 backward.
        """

    def attention_forward(self, out: Array, lse: Array, q: Array, k: Array, v: Array, end: Array, position: Array,
                          scale: float, window: int = 0, precision: str = "exact", begin: Array | None = None) -> None:
        """Grouped-query attention: k, v [T, G, C]; out, q [Q, H, C]; lse [H, Q] is kept for backward.

        T tokens, of which the last Q are queries, are a forest in depth-first order: end [T] (int32) is where the
        subtree of a token ends, position [T] (int32) its parent's plus 1. Token t sees token j if begin[j] <= t <
        end[j] and, unless window is 0, |position[t] - position[j]| < window. begin None: begin[j] is j. Given, as int32
        [T], it makes tokens see both ways: all are in documents without branches, and begin[j] is the first token of
        j's. C is at most 512, on a GPU 256. out, q, k and v may each be bf16 (as uint16). Where the precision is not
        exact and the device multiplies bf16, products are of numbers in bf16.
        """

    def attention_backward(self, dq: Array, dk: Array, dv: Array, delta: Array, dout: Array, out: Array, lse: Array,
                           q: Array, k: Array, v: Array, end: Array, position: Array, scale: float, window: int = 0,
                           precision: str = "exact", begin: Array | None = None) -> None:
        """dq [Q, H, C], dk, dv [T, G, C]; delta [H, Q] is work space. All but delta and lse may be bf16."""

    def conv_forward(self, out: Array, inp: Array, w: Array, before: Array) -> None:
        """out [T, D] = c * sum_j w[j] * (b * x of the token j before); inp [T, 3, D] holds b, c and x of each token.

        w [L, D]; before: int32 [T], the token before each in its document, -1 where there is none.
        """

    def conv_backward(self, dinp: Array, sums: Array, dout: Array, inp: Array, w: Array, before: Array) -> None:
        """dinp [T, 3, D] = the gradient of conv_forward for its input; sums: float32 [T, D], work space."""

    def causal_conv_forward(self, out: Array, inp: Array, w: Array, bias: Array | None, before: Array,
                            first: int = 0) -> None:
        """out [T, D] = SiLU(bias + sum_j w[j] * inp of the token j before), of D channels of inp [T, W] from first on.

        w [L, D]; bias [D] or None; before as in conv_forward.
        """

    def causal_conv_backward(self, dinp: Array, sums: Array, dout: Array, inp: Array, w: Array, bias: Array | None,
                             before: Array, first: int = 0) -> None:
        """dinp [T, W] = the gradient of causal_conv_forward for its input, in those D channels; the others are kept.

        sums: float32 [T, D], work space. dinp may not be inp.
        """

    def delta_forward(self, out: Array, states: Array, qkv: Array, beta: Array, alpha: Array, a: Array, dt: Array,
                      before: Array, pieces: Array, eps: float, precision: str = "exact") -> None:
        """out [T, H, C] = the gated delta rule of qkv [T, 2 G + H, C]; native/et.h has its formulas.

        beta, alpha [T, H]; a, dt [H]; before as in conv_forward; pieces: int32 [P, 5] of data/packing.py; states:
        float32, room for [kept, H, C, C], in any shape. Where C is a multiple of 32 and the precision is not "exact",
        products are of numbers rounded to bf16, if the kernel set multiplies those.
        """

    def delta_backward(self, dqkv: Array, dbeta: Array, dalpha: Array, dstates: Array, dout: Array, qkv: Array,
                       beta: Array, alpha: Array, a: Array, dt: Array, states: Array, before: Array, pieces: Array,
                       eps: float, precision: str = "exact") -> None:
        """The gradients of delta_forward's qkv, beta and alpha; dstates is work space as large as states."""

    def ssm_forward(self, out: Array, states: Array, steps: Array, inp: Array, rows: Array, bias: Array, a: Array,
                    skip: Array, before: Array, pieces: Array, state: int, precision: str = "exact") -> None:
        """The scan of Mamba 2: out [T, H, C] of inp [T, W], each token's x [H, C], B [G, N] and C [G, N], and of the
        last H values of each of `rows` [T, E]; N is `state`.

        A head's state S [N, C] passes from token to token of a document: S = e^(dt a) S + B (dt x)^T, out = S^T C +
        skip x, dt = ln(1 + e^(row + bias)). bias, a, skip [H]. before as in conv_forward; pieces: int32 [P, 5], of
        data/packing.py. states: float32 [S, H, N, C] for the states that these keep; steps: float32 [3, H, T]. Both are
        work space. C and N are multiples of 16, up to 128; precision as in delta_forward, where they are of 32.
        """

    def ssm_backward(self, dinp: Array, drows: Array, states: Array, dstates: Array, steps: Array, dout: Array,
                     inp: Array, rows: Array, bias: Array, a: Array, skip: Array, before: Array, pieces: Array,
                     state: int, precision: str = "exact") -> None:
        """dinp, float32 [T, W], and the last H columns of drows [T, E] = the gradients of ssm_forward. dstates is work
        space as states are.
        """

    def glu_forward(self, out: Array, gate: Array, up: Array, kind: str) -> None:
        """out = act(gate) * up, all activations; kind "silu", "gelu" (tanh-approximated), "gelu_erf" or "sigmoid". out
        may be gate or up.
        """

    def glu_backward(self, dgate: Array, dup: Array, act: Array, dout: Array, gate: Array, up: Array,
                     kind: str) -> None:
        """dgate and dup of glu_forward, and act, its output. dgate and dup may be dout or their own forward input."""

    def gelu_forward(self, out: Array, inp: Array) -> None:
        """out = inp * Phi(inp), Phi(x) = (1 + erf(x / sqrt(2))) / 2, both activations. out may be inp."""

    def gelu_backward(self, dinp: Array, act: Array, dout: Array, inp: Array) -> None:
        """dinp of gelu_forward, and act, its output. dinp may be dout or inp."""

    def add_bias(self, x: Array, bias: Array) -> None:
        """x [T, N], activations, += bias [N]."""

    def copy(self, out: Array, inp: Array) -> None:
        """out = inp; each may be float32 or bf16."""

    def add(self, x: Array, y: Array) -> None:
        """x += y."""

    def dropout(self, out: Array, inp: Array, p: float, seed: int, accumulate: bool = False) -> None:
        """out = inp * keep / (1 - p), keep a pure function of seed and index, so backward calls it on dout.

        out and inp are activations; out may be inp when not accumulating.
        """

    def scale(self, x: Array, s: float) -> None:
        """x *= s."""

    def head_forward(self, logp: Array, best: Array | None, logits: Array, state: Array, h: Array, w: Array, fmt: str,
                     targets: Array, part: tuple[int, int] = WHOLE, precision: str = "exact", cap: float = 0.0) -> None:
        """logp [T] = log softmax(h [T, D] . w [V, D] transposed) at targets [T] (int32); best [T] (int32) = arg max.

        h may be bf16. Work space: logits [T, B] for B entries of the vocabulary at a time, state [T, HEAD_STATE].
        `part`: first entry and end in the vocabulary. Calls for consecutive parts from 0 to V, with the same arrays,
        are one pass; the last call completes it. cap: logits z are cap * tanh(z / cap); 0: they are z. No GPU has it.
        """

    def head_backward(self, dh: Array, logp: Array, logits: Array, e: Array, state: Array, h: Array, w: Array, fmt: str,
                      targets: Array, a: Array | None, part: tuple[int, int] = WHOLE, precision: str = "exact",
                      cap: float = 0.0) -> None:
        """dh [T, D] = sum over v of a_t (softmax(z_t) - onehot(target_t))_v w_v, where a [T] = -dL/dlogp; logp as
        head_forward. Where a depends on logp, it may be None up to V, and a last call, of part (V, V) with the same
        state and dh, has it.

        e [T, B], float32 or bf16, is work space as well; float32 may be logits. cap: as in head_forward; its slope is a
        part of the gradient.
        """

    def cache_store(self, keys: Array, values: Array, k: Array, v: Array, slot: Array) -> None:
        """Writes k and v [T, G, C] to the slots slot [T] (int32) of a cache of L blocks of CACHE tokens.

        keys [L, G, C, CACHE], values [L, G, CACHE, C]; slot i is token i % CACHE of block i / CACHE. All may be bf16.
        """

    def attention_cached(self, out: Array, q: Array, keys: Array, values: Array, path: Array, scale: float,
                         window: int = 0) -> None:
        """out [T, H, C] = attention of queries q [T, H, C], each over the tokens of its path [T, P] (int32) in a cache.

        An entry of a path is the slot of the last token that is seen of a block, whose earlier ones are seen too; -1
        ends it. With a window, the last `window` of these tokens are seen. All products are in float, and a query's
        result does not depend on the others. out, q, keys and values may each be bf16.
        """

    def head_sample(self, token: Array, logp: Array, drawn: Array, logits: Array, state: Array, h: Array, w: Array,
                    fmt: str, key: Array, limit: Array | None, temperature: float, part: tuple[int, int] = WHOLE,
                    precision: str = "exact", cap: float = 0.0) -> None:
        """token [T] (int32) drawn from softmax(z / temperature), z = h [T, D] . w [V, D] transposed, among the logits
        of a row t that are at least limit[t] (None: all); the first of the likeliest at temperature 0.

        logp [T]: its log-probability by softmax(z), over all; drawn [T]: in what it was drawn from. Chance is a pure
        function of key [T, 2] (int32, the words of 64 bits, low word first) and the token. logits [T, B], state
        [T, SAMPLE_STATE], `part` and `cap` as in head_forward.
        """

    def head_top(self, top: Array, lse: Array, logits: Array, state: Array, h: Array, w: Array, fmt: str, limit: Array,
                 part: tuple[int, int] = WHOLE, precision: str = "exact", cap: float = 0.0) -> None:
        """top [T, M] = the M highest logits of a row t below limit[t], in no order; lse [T], log-sum-exp of all.

        Where there are fewer, -inf follows. logits, state, `part` and `cap` as in head_sample.
        """

    def adamw(self, param: Array, grad: Array, m: Array, v: Array, lr: float, beta1: float, beta2: float, eps: float,
              weight_decay: float, step: int) -> None:
        """One step of decoupled AdamW (Loshchilov & Hutter 2019) on param, m and v; step counts from 1."""

    def adamw8(self, param: Array, grad: Array, moments: Array, lr: float, beta1: float, beta2: float, eps: float,
               weight_decay: float, step: int, seed: int) -> None:
        """The same with m and v in 8 bits: moments uint8 [ceil(n / MOMENTS), MOMENT_BYTES], any shape; zeros at first.

        After Dettmers et al. 2022 (2110.02861); codes: native/et.h. v is rounded at random, by seed and index.
        """

    def sum_squares(self, x: Array) -> float:
        """The sum of x^2, in double, in an order that does not depend on the threads."""


class Backend(Ops, Protocol):
    """A device that is open. Runs one op at a time: RuntimeError if two threads call at once."""

    @property
    def isa(self) -> str:
        """The name of the kernels, such as the instruction set."""

    @property
    def threads(self) -> int:
        """The number of threads that it was opened with."""

    @property
    def working(self) -> int:
        """The number of threads that compute; the others sleep. Can be changed between two ops."""

    @working.setter
    def working(self, threads: int) -> None: ...

    def products(self, precision: str) -> str:
        """The numbers that are multiplied at a precision, such as "bf16 forward, bf16 backward"."""

    def peak(self, precision: str, backward: bool = False) -> float:
        """Operations a second (two for a multiplication and its sum) that a loop in registers reaches on all threads.

        In the numbers of the products with quantized weights at this precision.
        """

    def synchronize(self) -> None:
        """Returns when all ops so far are done. Raises what went wrong on the device, in them or before."""

    @property
    def records(self) -> bool:
        """Whether `record` saves time: it does where beginning an op takes long compared with the op."""

    def record(self, ops: Callable[[], None]) -> Recorded:
        """What runs the ops that `ops` calls, with what they are called with now. None of them runs yet, and there is
        no `synchronize` among them. What it returns is kept until what it has begun is done.
        """

    def tape(self) -> Tape | None:
        """An empty tape; None where ops cannot be written on one, or where `record` is what saves time."""

    @property
    def scratch_bytes(self) -> int:
        """Bytes of work space that all ops share."""

    def use_scratch(self, scratch: Array) -> None:
        """Before the first op: a writable uint8 array of scratch_bytes. Without it the backend allocates its own."""

    @property
    def is_paged(self) -> bool:
        """Whether memory costs nothing until it is written, and again after it is discarded."""

    def allocate(self, nbytes: int, whole: bool = True) -> Memory:
        """Memory for arrays. whole: whether all of it will be written; of other memory little is taken until it is.
        Raises MemoryError, or DeviceError.
        """

    def upload(self, mapped: Array) -> Array:
        """A weight as ops read it, from its GGUF bytes, uint8, mapped from the file; or an array that never changes."""

    def place(self, array: Array) -> Array:
        """A small array of this process as ops read it, such as the tokens of a batch. It is not changed afterwards."""

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        """A small array for ops to write, which lives as long as it is referred to."""


OPS = tuple(name for name in vars(Ops) if not name.startswith("_"))
"""The names of all ops."""
