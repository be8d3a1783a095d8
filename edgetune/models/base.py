"""The contract of a network: what the planner asks of it, and the passes that training makes through it.

A Structure says what a network needs and computes, without its weights. A Network is an opened file; built in an arena
it is Passes. T tokens of a micro-batch, S its supervised positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..adapters.base import Carved
from ..backends.arena import Arena, Buffer
from ..backends.base import Backend
from ..formats.gguf import Gguf
from .linear import Projections, RunShape

if TYPE_CHECKING:
    from ..data.packing import Batch


@dataclass(frozen=True)
class Flops:
    """Of one step: a multiplication and an addition are 2. blocks: forward; head: forward, and as much backward."""

    blocks: int
    blocks_backward: int
    head: int

    @property
    def forward(self) -> int:
        return self.blocks + self.head

    @property
    def backward(self) -> int:
        return self.blocks_backward + self.head

    @property
    def total(self) -> int:
        return self.forward + self.backward


class Structure(ABC):
    """A stack of n_layer blocks, each with the same projections, below a head over n_vocab tokens."""

    @property
    @abstractmethod
    def n_layer(self) -> int: ...

    @property
    @abstractmethod
    def n_vocab(self) -> int: ...

    @abstractmethod
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """[N, K] of a block's projections that can be adapted, by GGUF name without block and ".weight"."""

    @property
    @abstractmethod
    def head_weights(self) -> int:
        """Weights that the head multiplies with."""

    @abstractmethod
    def buffers(self, run: RunShape) -> list[Buffer]:
        """Everything of size that forward and backward hold, but for parameters, optimizer and scratch."""

    @abstractmethod
    def flops(self, run: RunShape, lengths: Sequence[int]) -> Flops:
        """What a step on documents of these lengths has to compute, all but their last tokens supervised.

        Forward: 2 a token and weight of the projections, 2 a supervised token and weight of the head. Backward: the
        same again where the gradient passes, down to what is trained. Not counted: what is computed again, the
        adapter's products, embedding, norms and the like.
        """


class Network(ABC):
    """An opened file. gguf: the file; structure: what it needs."""

    gguf: Gguf
    structure: Structure

    @abstractmethod
    def build(self, run: RunShape, ops: Backend, arena: Arena, streamed: int, seed: int) -> Passes:
        """In an arena of the structure's buffers; streamed: blocks, the first ones, whose weights do not stay in
        memory; seed: of the adapter's start.
        """


class Passes(ABC):
    """Forward and backward in the memory of one arena. Not thread-safe.

    adapter: what is trained; linear: the projections, whose `off()` leaves the adapter out of a pass; before_block:
    called before each block and part of the head, who raises there abandons a pass.
    """

    adapter: Carved
    linear: Projections
    before_block: Callable[[], None]

    @abstractmethod
    def forward(self, batch: Batch, keep: bool) -> None:
        """Through all blocks; keep: backward follows."""

    @abstractmethod
    def head_forward(self, batch: Batch, best: np.ndarray | None = None) -> np.ndarray:
        """After `forward`: log p of each supervised target, float32 [S]; valid until the next pass. best: int32 [S],
        the likeliest.
        """

    @abstractmethod
    def backward(self, batch: Batch, a: np.ndarray) -> np.ndarray:
        """After `forward` with keep: adds to the adapter's gradients, returns log p [S].

        a: float32 [S], -dL/dlogp of each supervised target.
        """

    @abstractmethod
    def score(self, batch: Batch, best: np.ndarray | None = None) -> np.ndarray:
        """forward and head_forward, and nothing that is streamed stays in memory."""
