"""The contract of a sublayer of a decoder's blocks. Each block has two: a mixer, through which tokens learn of earlier
ones, and a feed-forward part, which sees each token alone. The output of either is added to the residual stream.

A kind is a Sublayer, which structure.py lists. Its shape and its tensors are in formats/kinds.py. It makes
what its last projection takes; `Residual` adds the output. T tokens of a batch, N of them whose output is needed, D the
model's width. `k` are the activations of a block that its backward reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Backend
from ..formats.shape import Shape
from .linear import Activations, Projections, RunShape
from .norms import Norms

if TYPE_CHECKING:
    from ..data.packing import Batch
    from .common import Common

@dataclass(frozen=True)
class SublayerNames:
    """Names of a sublayer: for an adapter; of the norm after it; and, of activations, before "_out" and after "rstd_".
    """

    name: str
    post: str
    kept: str


MIXER = SublayerNames("attention", "post_attention_norm", "att")
FEED_FORWARD = SublayerNames("feed_forward", "post_ffw_norm", "mlp")


class Sublayer(ABC):
    """A kind of sublayer. last: its last projection; also_last: others whose output is the sublayer's; inputs: those of
    the normed input; by GGUF's names.

    repeats: whether its passes are ops alone, so that a backend may record them. backward_share: the FLOP of backward
    as a share of `flops`. on_cpu_alone: whether no GPU has its ops.
    """

    part: ClassVar[SublayerNames]
    last: ClassVar[str]
    also_last: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[tuple[str, ...]]
    repeats: ClassVar[bool] = True
    on_cpu_alone: ClassVar[bool] = False
    backward_share: ClassVar[float] = 2.0

    def __init__(self, of: Common) -> None:
        self.of = of

    # ---- sizes, before there is a decoder -------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        """Values a token of its activations in `k`; those named rstd_*, lse and u_* are float32."""

    @classmethod
    @abstractmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:
        """Work space for batches of up to `tokens` tokens after a prefix of up to `prefix`."""

    @classmethod
    def frozen_weights(cls, s: Shape) -> int:  # noqa: ARG003
        """Weights of its matrices that cannot be adapted."""
        return 0

    @classmethod
    def flops(cls, s: Shape, layer: int, lengths: Sequence[int]) -> int:  # noqa: ARG003
        """FLOP of forward on documents of these lengths, without those of projections that can be adapted."""
        return 0

    # ---- passes -----------------------------------------------------------------------------------------------------

    def project(self, out: np.ndarray, inner: np.ndarray, layer: int, k: Activations, accumulate: bool = False) -> None:
        """out [N, D] (+)= the sublayer's output, of what its last projection takes."""
        self.of.linear.forward(out, inner, layer, self.last, k, accumulate)


class Mixer(Sublayer):
    """inner: the activation that its last projection takes. keeps_prefixes: whether it continues a prefix that was
    computed before. has_keys: whether its blocks have keys and values.

    Our own engine answers where all kinds of a decoder's mixers say what they keep of earlier tokens: keys and values
    of each token, which `attend` of common.Cached stores, or a state of the sequence. A kind with a state says its
    arrays (`state`) and the work space of such passes (`answer_buffers`). In `forward`, `self.of.cached` is not None
    then, and its `states` (states.py) has the runs of tokens that continue a state: for each run in order, copy or
    zero the state in its slot as the run says, pass its tokens from that state, and leave the state after the last one
    in the slot. A run begins after the run before it in its document, at most 64 tokens later, or continues a state of
    an earlier pass; a step of many answers is as many runs of one token. Convolutions before a state keep their last
    inputs by `states.tails`, as ShortConv does. Neither batches nor the order of runs may change how a sum is rounded.
    """

    part = MIXER
    inner: ClassVar[str]
    keeps_prefixes: ClassVar[bool] = False
    has_keys: ClassVar[bool] = False

    @classmethod
    def state(cls, s: Shape) -> dict[str, tuple[int, ...]] | None:  # noqa: ARG003
        """name -> shape, of the float32 arrays that a block keeps of a sequence; None: it cannot answer."""
        return None

    @classmethod
    def answer_buffers(cls, s: Shape, tokens: int, runs: int, activations: str) -> list[Buffer]:  # noqa: ARG003
        """Work space, besides `buffers`, of passes that continue `runs` states with `tokens` tokens in all."""
        return []

    @classmethod
    @abstractmethod
    def inner_width(cls, s: Shape) -> int:
        """Values a token of `inner`."""

    @abstractmethod
    def forward(self, layer: int, norm: np.ndarray, batch: Batch) -> None:
        """Sets k[inner], of needed tokens at least, from the normed input [T, D]."""

    @abstractmethod
    def backward(self, layer: int, dinp: np.ndarray | None, dinner: np.ndarray, norm: np.ndarray, batch: Batch) -> None:
        """dinp [T, D] (None: not wanted) = gradient of the normed input, from that of `inner` [T, width]."""


class FeedForward(Sublayer):
    """inner is an array of work space: all that backward needs of it is computed again from `k`."""

    part = FEED_FORWARD

    @abstractmethod
    def forward(self, layer: int, norm: np.ndarray, k: Activations) -> np.ndarray:
        """Returns `inner` [N, width], of the normed input [N, D]."""

    def keep(self, inner: np.ndarray, layer: int, k: Activations) -> None:
        """Computes again what `project` keeps for backward, without the output."""
        self.of.linear.keep(inner, layer, self.last, k)

    @abstractmethod
    def backward(self, layer: int, dinp: np.ndarray | None, dout: np.ndarray, norm: np.ndarray, k: Activations,
                 deepest: int) -> None:
        """dinp [N, D] (None: not wanted) = gradient of the normed input, from that of the output [N, D], or until group
        `deepest` (structure.py). It may change what is in `k`.
        """


class Residual:
    """The sums, in a decoder's arena. has_norms: whether a norm follows each sublayer."""

    def __init__(self, ops: Backend, arena: Arena, linear: Projections, norms: Norms, has_norms: bool) -> None:
        self._ops = ops
        self._arena = arena
        self._linear = linear
        self._norms = norms
        self._has_norms = has_norms

    def keeps_output(self, layer: int, part: SublayerNames) -> bool:
        """Whether the sublayer's output is kept for backward."""
        return self._has_norms or self._linear.adapts(f"blk.{layer}.{part.name}")

    def forward(self, x: np.ndarray, inner: np.ndarray, k: Activations, layer: int, sublayer: Sublayer) -> None:
        """x [T, D] += the sublayer's output, of what its last projection takes."""
        part = sublayer.part
        if not self.keeps_output(layer, part):
            sublayer.project(x, inner, layer, k, accumulate=True)
            return
        sublayer.project(k[f"{part.kept}_out"], inner, layer, k)
        out = self._output(k, layer, part)
        name = f"blk.{layer}.{part.name}"
        if self._linear.adapts(name):
            self._linear.adapter.sublayer_forward(name, out)
        self._ops.add(x.reshape(-1), out.reshape(-1))

    def backward(self, dx: np.ndarray, k: Activations, layer: int, part: SublayerNames) -> np.ndarray:
        """The gradient [T, D] of the projection's output, from that of the sum: dx itself if nothing follows it."""
        if not self.keeps_output(layer, part):
            return dx
        raw = k[f"{part.kept}_out"]
        dout = dx
        draw = self._arena.view("dpost", *dx.shape)
        name = f"blk.{layer}.{part.name}"
        if self._linear.adapts(name):
            self._ops.copy(draw, dx)
            self._linear.adapter.sublayer_backward(name, draw, self._output(k, layer, part))
            dout = draw
        if self._has_norms:
            self._norms.backward(draw, dout, raw, k[f"rstd_{part.kept}"], f"blk.{layer}.{part.post}")
        return draw

    def _output(self, k: Activations, layer: int, part: SublayerNames) -> np.ndarray:
        """The sublayer's output [T, D] without the adapter, in a buffer that is free then, from its projection's."""
        raw = k[f"{part.kept}_out"]
        out = self._arena.view("dnorm", *raw.shape)
        if self._has_norms:
            self._norms.forward(out, k[f"rstd_{part.kept}"], raw, f"blk.{layer}.{part.post}")
        else:
            self._ops.copy(out, raw)
        return out
