"""The contract of an adapter family: what is trained beside frozen projections.

To add one, write two classes in a file of this folder:

- a Family, a frozen dataclass whose fields are its options, made by `options.option`. It says what is trained and how
  much memory that takes; the planner calls it for many sizes before anything is allocated.
- a Carved, the family in the memory of an arena, which computes. `Family.carve` makes it.

All parameters of a family are one flat array, `lora` in the arena, its groups one after another, and their gradients
are `dlora`. The optimizer, the plan and checkpoints know only the groups. Gradients accumulate over a step's
micro-batches; the trainer sets them to zero before a step.

For each micro-batch that learns, `before_step` is called once, then for each trained projection `forward`, and in the
opposite order `backward` followed by its `finish`. Where a block is computed again, forward is called again, or `keep`
where the product itself is not needed. `low_rank.py` is LoRA; tests/adapters/test_family.py has a family that trains
one scale a projection. Letters: T tokens, N outputs, K inputs of a projection.
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
"""A product without a low-rank part."""


@dataclass(frozen=True)
class Group:
    """Parameters that the optimizer treats alike. lr_scale multiplies the learning rate; decay: whether they decay.

    exported: whether they are part of the adapter, or only of its training; then a run keeps them in a file beside it.
    """

    name: str
    size: int
    lr_scale: float = 1.0
    decay: bool = True
    exported: bool = True


@dataclass(frozen=True, eq=False)
class Frozen:
    """A frozen projection: its weight, its products and their precision.

    name: such as "blk.0.attn_q"; target: such as "attn_q". precision: of a family's products in backward;
    forward_precision: of all products in forward. needs_exact_dinp: whether dinp is computed exactly.
    """

    name: str
    target: str
    ops: Backend
    weight: Tensor
    bias: Array | None
    precision: str
    forward_precision: str
    needs_exact_dinp: bool

    def forward(self, out: Array, inp: Array, accumulate: bool, low_rank: LowRank = NOTHING) -> None:
        """out [T, N] (+)= inp [T, K] . w^T + low_rank + bias"""
        w = self.weight
        self.ops.matmul_forward(out, inp, w.data, w.format, 1.0, accumulate, low_rank, self.forward_precision)
        if self.bias is not None:
            self.ops.add_bias(out, self.bias)

    def backward(self, dinp: Array, dout: Array, accumulate: bool, low_rank: LowRank = NOTHING) -> None:
        """dinp [T, K] (+)= dout [T, N] . w + low_rank"""
        w = self.weight
        precision = "exact" if self.needs_exact_dinp else self.precision
        self.ops.matmul_backward(dinp, dout, w.data, w.format, 1.0, accumulate, low_rank, precision)


@dataclass(frozen=True)
class Family(ABC):
    """One way to adapt a network. An instance holds its options.

    name: in run.json and in what a resumed run is compared with.
    """

    name: ClassVar[str]

    def check_shapes(self, shapes: Shapes) -> None:  # noqa: B027  # most families fit every shape
        """Raises UsageError where the options do not fit these projections."""

    @abstractmethod
    def parameters(self, shapes: Shapes) -> list[Group]:
        """The groups of parameters, in the order in which they are stored."""

    @property
    @abstractmethod
    def kept_width(self) -> int:
        """Floats a token and projection that forward keeps for backward (`kept` of Carved); 0: none."""

    @abstractmethod
    def buffers(self, tokens: int, widest: int, activations: str) -> list[Buffer]:
        """Work space for T = tokens, of lifetime "block". widest: the largest K; activations: their numpy type."""

    @abstractmethod
    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> Carved:
        """The family in an arena: views into its `lora` and `dlora`, with `lora` set to its start by the seed."""

    def options(self) -> dict[str, Any]:
        return asdict(self)


class Carved(ABC):
    """A family in the memory of an arena.

    kept [T, kept_width], float32: what `forward` fills for `backward`; None where kept_width is 0. accumulate: add to
    the output instead of overwriting it.
    """

    @abstractmethod
    def forward(self, linear: Frozen, out: Array, inp: Array, kept: Array | None, accumulate: bool) -> None:
        """out [T, N] (+)= the adapted projection of inp [T, K]."""

    @abstractmethod
    def keep(self, linear: Frozen, inp: Array, kept: Array | None) -> None:
        """Fills `kept` as `forward` does, without computing the product."""

    @abstractmethod
    def backward(self, linear: Frozen, dinp: Array | None, dout: Array, kept: Array | None, accumulate: bool) -> None:
        """dinp [T, K] (None: not needed) (+)= its gradient; gradients of parameters that do not need inp accumulate.

        `finish` for the same projection is called before the next one's backward.
        """

    @abstractmethod
    def finish(self, linear: Frozen, inp: Array) -> None:
        """The gradients of parameters that need the projection's input [T, K], which is made again only then."""

    def before_step(self, seed: int | None) -> None:  # noqa: B027  # most families draw nothing
        """Before a micro-batch that learns, with the seed for its random numbers; None: passes that follow measure."""

    @property
    def repeats(self) -> bool:
        """Whether its ops are called alike in all passes of as many tokens, and a device may record them: not where
        they are given numbers drawn by the seed.
        """
        return False

    @abstractmethod
    def export(self) -> Lora:
        """The adapter as pairs that llama.cpp applies to the base; may be views of the arena."""

    @abstractmethod
    def load(self, pairs: Lora, source: str) -> None:
        """The inverse of `export`. Raises MismatchError for pairs that this adapter cannot become."""


def slices(groups: Sequence[Group], flat: np.ndarray) -> list[np.ndarray]:
    """The part of a flat array that belongs to each group."""
    ends = np.cumsum([group.size for group in groups])
    return np.split(flat, ends[:-1])
