"""The contract of a network: its Structure for the planner, and the passes that training makes through it.

To add one, write three classes in a file of this folder:

- a Structure has the network's projections, buffers and FLOP, without its weights. The planner compares many RunShapes
  with it before anything is allocated.
- a Network, decorated with `register`, is an opened GGUF. The trainer allocates an arena with the buffers of its
  Structure, those of the adapter and those of the optimizer, and calls `build`.
- Passes are the network in that arena. For each micro-batch the trainer calls `forward` with keep, for an objective
  that needs log-probabilities `head_forward`, and then `backward`; for a measurement it calls `score`.

An objective names the heads that it needs (`adapters/heads.py`). A network refuses those that it does not have, and
trains those that have parameters (`Structure.head_groups`).

A block's matrices go through `linear.Projections`, which applies the adapter. `decoder.py` is the network of the four
architectures, `encoder.py` one that is no language model; tests/models/test_encoder.py has a small one. T: tokens of a
micro-batch, S: its supervised positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from ..adapters.base import BIASES, KEYS, PROJECTIONS, Carved, Group, Shapes, slices
from ..adapters.heads import VOCABULARY, HeadKind
from ..adapters.lora import expert_name
from ..backends.arena import Arena, Buffer
from ..backends.base import Backend
from ..errors import UnsupportedError, UsageError
from ..formats.gguf import Gguf
from .cache import Cache
from .linear import Projections, RunShape

if TYPE_CHECKING:
    from ..data.packing import Batch


@dataclass(frozen=True)
class Flops:
    """FLOP of one step; a multiplication and its addition are 2. blocks: forward; head: forward, as many backward."""

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
    """A stack of n_layer blocks below one head or several."""

    @property
    @abstractmethod
    def n_layer(self) -> int: ...

    @property
    @abstractmethod
    def n_tokens(self) -> int:
        """Token ids that it reads: 0 to n_tokens - 1."""

    @property
    def longest(self) -> int | None:
        """Tokens in a document at most; None: any number."""
        return None

    @property
    def max_grad_norm(self) -> float:
        """The norm to which a gradient is clipped where a run does not say it."""
        return 1.0

    def check_answers(self) -> None:
        """Raises UnsupportedError where our own engine cannot answer with the network."""
        if self.cache is None:
            raise UnsupportedError("this model has blocks that edgetune's own engine cannot answer with",
                                   "answer through llama.cpp, with a family that it serves, such as lora")

    @property
    def cache(self) -> Cache | None:
        """What answers with the network keep of earlier tokens; None: it only reads."""
        return None

    @property
    def keeps_prefixes(self) -> bool:
        """Whether its passes take batches that continue a prefix: see Passes."""
        return False

    @abstractmethod
    def linear_shapes(self, layer: int) -> dict[str, tuple[int, int]]:
        """[N, K] of a block's projections that can be adapted, by GGUF name without block and ".weight"."""

    def stack_shapes(self, layer: int) -> dict[str, tuple[int, int, int]]:  # noqa: ARG002  # most have none
        """[E, N, K] of a block's matrices of experts that can be adapted, by GGUF name."""
        return {}

    def targets(self) -> tuple[str, ...]:
        """The names of all projections that some block has; they are trained unless others are named."""
        return tuple(dict.fromkeys(name for layer in range(self.n_layer) for name in self.linear_shapes(layer)))

    def expert_targets(self) -> tuple[str, ...]:
        """The names of all stacks of experts that some block has; they are trained where they are named."""
        return tuple(dict.fromkeys(name for layer in range(self.n_layer) for name in self.stack_shapes(layer)))

    def named_targets(self) -> tuple[str, ...]:
        """The names of all projections that are trained where they are named alone."""
        return self.expert_targets()

    def projections(self, layer: int, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
        """[N, K] of the projections of a block that these targets name, each expert's for itself."""
        linear = self.linear_shapes(layer)
        stacks = self.stack_shapes(layer)
        found = {}
        for name in targets:
            if name in linear:
                found[name] = linear[name]
            elif name in stacks:
                count, *shape = stacks[name]
                found |= dict.fromkeys((expert_name(name, i) for i in range(count)), (shape[0], shape[1]))
        return found

    def block_weights(self, layer: int) -> int:
        """Weights of a block's projections."""
        return sum(n * k for n, k in self.linear_shapes(layer).values())

    def parts(self, kind: str, layer: int) -> tuple[Shapes, Shapes]:  # noqa: ARG002
        """The shapes of other parts that a family may adapt, as of its `adapts`: those of a block, and those outside of
        blocks. Raises UsageError for a kind that the network does not have.
        """
        raise UsageError(f"this model has no {kind} to adapt", "choose another --family, or another model")

    @property
    @abstractmethod
    def head_weights(self) -> int:
        """Weights of the file that the head multiplies with; 0: it has parameters alone."""

    def head_groups(self, heads: Sequence[HeadKind]) -> list[Group]:
        """The parameters that these heads train, stored after those of the family. An exported one is a part of the
        adapter. Raises UsageError for a head that the network does not have.
        """
        for head in heads:
            if head != VOCABULARY:
                raise UsageError(f"this model has no head for {head.name}", "choose another method, or another model")
        return []

    def exported_heads(self, run: RunShape, flat: np.ndarray) -> dict[str, np.ndarray]:
        """The heads that are a part of the adapter, by their tensors' names: views of `flat`, all parameters."""
        groups = self.parameters(run)
        own = {group.name for group in self.head_groups(run.heads) if group.exported}
        return {f"head.{group.name}": part for group, part in zip(groups, slices(groups, flat), strict=True)
                if group.name in own}

    def parameters(self, run: RunShape) -> list[Group]:
        """All trained parameters in stored order: those of the family, then those of the heads."""
        return [*run.family.parameters(self.trained_shapes(run)), *self.head_groups(run.heads)]

    def trained_shapes(self, run: RunShape) -> dict[str, tuple[int, ...]]:
        """The shape of every part that the run's family adapts, by name. Raises UsageError for a part that the network
        lacks, for keys in some blocks alone: all blocks attend to the same virtual tokens; and for experts that the
        family does not take.
        """
        experts = [] if run.family.takes_experts else sorted({*run.targets} & {*self.expert_targets()})
        if experts:
            raise UsageError(f"the family {run.family.name} does not adapt experts, which {experts[0]} are",
                             "name other targets, or take --family lora")
        if KEYS in run.family.adapts and len(run.blocks) < self.n_layer:
            raise UsageError(f"the family {run.family.name} trains keys and values in every block, and "
                             f"{len(run.blocks)} of {self.n_layer} blocks are to be trained",
                             "give --blocks all, or another --family")
        found: dict[str, tuple[int, ...]] = {}
        for kind in run.family.adapts:
            others: Shapes = {}
            for i in run.blocks:
                of_block, others = self._parts_of(kind, i, run.targets)
                found |= {f"blk.{i}.{name}": shape for name, shape in of_block.items()}
            found |= others
        return found

    def _parts_of(self, kind: str, layer: int, targets: Sequence[str]) -> tuple[Shapes, Shapes]:
        """`parts`, or the projections, which these targets name."""
        if kind == PROJECTIONS:
            return self.projections(layer, targets), {}
        of_block, others = self.parts(kind, layer)
        if kind == BIASES:
            of_block = {name: of_block[name] for target in targets if (name := f"{target}.bias") in of_block}
        return of_block, others

    @abstractmethod
    def buffers(self, run: RunShape) -> list[Buffer]:
        """Every large array of forward and backward; parameters, optimizer and scratch are added by the planner."""

    @abstractmethod
    def flops(self, run: RunShape, lengths: Sequence[int]) -> Flops:
        """The FLOP of a step on documents of these lengths, all but their last tokens supervised.

        Forward: 2 a token and weight of the projections, 2 a supervised token and weight of the head. Backward: the
        same again down to the lowest trained projection. Recomputation, the adapter's products, embedding, norms and
        the like are not counted.
        """


class Network(ABC):
    """An opened file. gguf: the file; structure: of its network. architectures: the values of general.architecture
    whose files it opens. is_causal: whether a token sees only those before it, so that common prefixes of rows can be
    computed once. objective: the name of the one by which it learns where none is named.
    """

    architectures: ClassVar[tuple[str, ...]]
    is_causal: ClassVar[bool] = True
    objective: ClassVar[str] = "sft"

    gguf: Gguf
    structure: Structure

    @abstractmethod
    def __init__(self, gguf: Gguf) -> None: ...

    @abstractmethod
    def build(self, run: RunShape, ops: Backend, arena: Arena, streamed: int, seed: int) -> Passes:
        """The passes, in an arena that holds the structure's buffers, with an adapter whose start `seed` decides.

        streamed: the number of blocks, from the first, whose weights do not stay in memory; 0: all stay.
        """


NETWORKS: dict[str, type[Network]] = {}
"""The network that opens a file, by its architecture."""
N = TypeVar("N", bound=type[Network])


def register(kind: N) -> N:
    """Registers a network by its architectures. Raises ValueError where another has one of them."""
    for name in kind.architectures:
        if NETWORKS.get(name, kind).__qualname__ != kind.__qualname__:
            raise ValueError(f"{kind.__qualname__} has the architecture {name} of {NETWORKS[name].__qualname__}")
        NETWORKS[name] = kind
    return kind


class Passes(ABC):
    """Forward and backward in the memory of one arena. Not thread-safe.

    If the structure keeps prefixes, `score` of a prefix keeps what the batches after it see, with no gradient yet.
    Their `backward` adds to the prefix's gradient. The prefix's own `backward`, after `forward` with keep, takes that
    into account. No other prefix comes between these.

    adapter: the trained family. linear: the projections, whose `off()` leaves the adapter out of a pass. before_block:
    a function to call before each block and each part of the head; an exception from it abandons the pass. temperature:
    of the softmax that log p of a batch's choices is by; that of its targets is by softmax at 1.
    """

    adapter: Carved
    linear: Projections
    before_block: Callable[[], None]
    temperature: float = 1.0

    @abstractmethod
    def forward(self, batch: Batch, keep: bool) -> None:
        """Computes all blocks. keep: keeps what backward needs, which follows."""

    @abstractmethod
    def head_forward(self, batch: Batch) -> np.ndarray:
        """Computes the first of the run's heads at each supervised position, after `forward` with keep and before
        `backward`, for which it may do some of the work: float32 [S], valid until the next pass. A head that chooses
        gives log p of the target, which is the next token or a label. For a batch with choices it is [S, 1 + k], the
        choices' log p last; of a vector head [S, D].
        """

    @abstractmethod
    def backward(self, batch: Batch, a: np.ndarray, dvalues: np.ndarray | None = None) -> np.ndarray:
        """Adds to the gradients of the adapter and the heads, after `forward` with keep; returns what `head_forward`
        does.

        a: of that shape, minus the derivative of L by it. dvalues: [S], dL/dvalue, if there is a value head.
        """

    def pooled(self, batch: Batch) -> np.ndarray:
        """The vector of each document, of length 1, float32 [documents, D]. Only encoders have it."""
        raise NotImplementedError

    def labels(self, batch: Batch) -> np.ndarray:
        """log p of every label at each supervised position, float32 [S, labels]; -inf of those of other heads. Only
        encoders have them.
        """
        raise NotImplementedError

    def label_heads(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The weights [k, D] and the bias [k] of each head of classes or tags, in the run's order: views of what is
        trained. Only encoders have them.
        """
        raise NotImplementedError

    def values(self, batch: Batch) -> np.ndarray:
        """The value head's output at each supervised position, [S], after `head_forward`."""
        raise NotImplementedError

    def likeliest(self, batch: Batch, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k likeliest tokens of each supervised position, int32 [S, k], and their log p, float32, after `forward`;
        the likeliest first. Only some networks have it.
        """
        raise NotImplementedError

    @abstractmethod
    def score(self, batch: Batch, best: np.ndarray | None = None) -> np.ndarray:
        """Does forward, and gives what head_forward does; afterwards no streamed weights are in memory. best: int32
        [S], filled with the likeliest targets.
        """
