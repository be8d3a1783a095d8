"""The contract of an adapter family: what is trained beside frozen projections.

A family is a frozen dataclass whose fields are its options, made by `options.option`. It says what it trains and which
memory that takes, for the planner; carved into an arena it is a Carved, which computes. All its parameters are one flat
array, `lora` in the arena, its groups one after another, and their gradients are `dlora`; optimizer, plan and
checkpoints know no more than the groups. Gradients accumulate. Letters: T tokens, N outputs, K inputs of a projection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend, LowRank
from ..formats.gguf import Tensor
from .lora import Lora

Shapes = Mapping[str, tuple[int, int]]
"""[N, K] of every trained projection, by GGUF name without ".weight"."""
NOTHING: LowRank = (None, None)


@dataclass(frozen=True)
class Group:
    """Parameters that the optimizer treats alike: lr_scale multiplies the learning rate; decay: weights decay."""

    name: str
    size: int
    lr_scale: float = 1.0
    decay: bool = True


@dataclass(frozen=True, eq=False)
class Frozen:
    """A frozen projection as a family sees it. precision: of products backward; is_careful: but for dinp, exact."""

    name: str  # blk.0.attn_q
    target: str  # attn_q
    ops: Backend
    weight: Tensor
    bias: Array | None
    precision: str
    forward_precision: str
    is_careful: bool

    def forward(self, out: Array, inp: Array, accumulate: bool, low_rank: LowRank = NOTHING) -> None:
        """out [T, N] (+)= inp [T, K] . w^T + low_rank + bias"""
        w = self.weight
        self.ops.matmul_forward(out, inp, w.data, w.format, 1.0, accumulate, low_rank, self.forward_precision)
        if self.bias is not None:
            self.ops.add_bias(out, self.bias)

    def backward(self, dinp: Array, dout: Array, accumulate: bool, low_rank: LowRank = NOTHING) -> None:
        """dinp [T, K] (+)= dout [T, N] . w + low_rank"""
        w = self.weight
        precision = "exact" if self.is_careful else self.precision
        self.ops.matmul_backward(dinp, dout, w.data, w.format, 1.0, accumulate, low_rank, precision)


@dataclass(frozen=True)
class Family(ABC):
    """One way to adapt. An instance holds its options."""

    name: ClassVar[str]

    def check_shapes(self, shapes: Shapes) -> None:  # noqa: B027  # most families fit every shape
        """Raises UsageError where the options do not fit these projections."""

    @abstractmethod
    def parameters(self, shapes: Shapes) -> list[Group]:
        """What is trained, in the order in which it is stored."""

    @property
    @abstractmethod
    def kept_width(self) -> int:
        """Floats a token that forward keeps for backward, for each projection, as `kept` of Carved; 0: none."""

    @abstractmethod
    def buffers(self, tokens: int, widest: int, activations: str) -> list[Buffer]:
        """Work space for T = tokens, of lifetime "block"; widest: the largest K; activations: their numpy type."""

    @abstractmethod
    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> Carved:
        """The parameters as views into the arena's `lora` and `dlora`, at their start by the seed."""

    def options(self) -> dict[str, Any]:
        return asdict(self)


class Carved(ABC):
    """A family in the memory of an arena. kept: the projection's kept_width floats a token, [T, kept_width]."""

    @abstractmethod
    def forward(self, linear: Frozen, out: Array, inp: Array, kept: Array | None, accumulate: bool) -> None:
        """out [T, N] (+)= the adapted projection of inp [T, K]."""

    @abstractmethod
    def keep(self, linear: Frozen, inp: Array, kept: Array | None) -> None:
        """Fills `kept` as forward does, without the product."""

    @abstractmethod
    def backward(self, linear: Frozen, dinp: Array | None, dout: Array, kept: Array | None, accumulate: bool) -> None:
        """dinp [T, K] (None: not wanted) (+)= its gradient. `finish` follows, before another projection's backward."""

    @abstractmethod
    def finish(self, linear: Frozen, inp: Array) -> None:
        """The rest of backward, which needs the projection's input again."""

    def before_step(self, seed: int | None) -> None:  # noqa: B027  # most families draw nothing
        """Before a micro-batch that learns: the seed of what it draws. None: what follows only measures."""

    @abstractmethod
    def export(self) -> Lora:
        """What llama.cpp applies to the base; may be views of the arena."""

    @abstractmethod
    def load(self, pairs: Lora, source: str) -> None:
        """The inverse of `export`. Raises MismatchError for pairs that this adapter cannot become."""


def slices(groups: Sequence[Group], flat: np.ndarray) -> list[np.ndarray]:
    """The part of a flat array that belongs to each group."""
    ends = np.cumsum([group.size for group in groups])
    return np.split(flat, ends[:-1])
