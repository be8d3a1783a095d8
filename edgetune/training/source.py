"""Where the examples of a step come from: the contract, and rows, the plainest source.

To add one, write a class that is a `Source` and give it to `Trainer(source=...)`. The trainer asks it for the examples
of each step, has it measure held-out ones, and keeps its state in checkpoints. `sources.py` has the answers that a
model draws; tests/training/test_source.py has a small one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..backends.arena import Buffer
from ..data.lengths import Lengths
from ..data.packing import Batch, Example
from ..errors import DataError
from ..models.base import Passes, Structure
from ..objectives.base import Objective
from ..serving.rollouts.plan import AnswerPlan
from .answered import Expectation, Rewards
from .batches import Batches, Micros
from .config import TrainConfig
from .passes import Measurement, References, measure
from .reference import Reference

if TYPE_CHECKING:
    from ..llamacpp.tokenizer import Tokenizer


@dataclass(frozen=True)
class Room:
    """The memory that a source takes beside the network's. answers: of those drawn at once, as many as the budget
    allows; keeps_start: whether the adapter that training starts from stays in memory; buffers: other arrays.
    """

    answers: AnswerPlan | None = None
    keeps_start: bool = False
    buffers: tuple[Buffer, ...] = ()


@dataclass(frozen=True)
class Learned:
    """What a step learns from. n: what its loss is divided by. anchors: are imitated beside the examples."""

    examples: list[Example]
    n: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    anchors: Sequence[Example] = ()


@dataclass(frozen=True)
class Parts:
    """What a source works with. answers: as the plan has them; tokenizer: where the source keeps one open."""

    decoder: Passes
    objective: Objective
    config: TrainConfig
    micros: Micros
    reference: Reference
    answers: AnswerPlan | None = None
    rewards: Rewards | None = None
    tokenizer: Tokenizer | None = None


class Source(ABC):
    """keeps_tokenizer: whether it needs a tokenizer while training. refers: whether it computes by itself what the
    reference model says. is_rewarded: whether held-out examples are measured by rewards. references: its log p.
    """

    keeps_tokenizer: ClassVar[bool] = False
    refers: ClassVar[bool] = False
    is_rewarded: bool = False
    references: References

    @classmethod
    def room(cls, objective: Objective, config: TrainConfig, lengths: Lengths,  # noqa: ARG003
             structure: Structure) -> Room:  # noqa: ARG003
        """Of a training over rows of these lengths. Raises UsageError for a network that it cannot use."""
        return Room()

    @abstractmethod
    def __init__(self, parts: Parts) -> None: ...

    @abstractmethod
    def of_step(self, step: int, batches: Batches) -> Learned:
        """Of step 1, 2, ... There may be no examples: then nothing is learned."""

    def see(self, batch: Batch, logp: np.ndarray) -> None:  # noqa: B027  # most keep nothing of it
        """What the objective saw of the step's examples, and log p [S], which is valid during the call."""

    def after_step(self, step: int, batches: Batches) -> None:  # noqa: B027  # most keep nothing of it
        """After the update."""

    @abstractmethod
    def measure(self, examples: Sequence[Example]) -> Measurement:
        """The objective's loss and metrics, or the rewards, on held-out examples."""

    def progress(self, loss: float, metrics: Mapping[str, float]) -> float | None:  # noqa: ARG002
        """What falls as a step learns more; None where the step does not tell."""
        return loss

    def expect(self, examples: Sequence[Example]) -> Expectation | None:  # noqa: ARG002
        """What is known before the first step, if anything is. Raises UsageError where nothing can be learned."""
        return None

    def state(self, step: int, batches: Batches) -> dict[str, Any] | None:  # noqa: ARG002
        """What the next step depends on after `step` steps, beside the rows and the adapter, as JSON; None: nothing."""
        return None

    def restore(self, state: Mapping[str, Any] | None) -> None:  # noqa: B027  # most have no state
        """The inverse of `state`."""


class Rows(Source):
    """The rows themselves."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.references = parts.reference

    def of_step(self, step: int, batches: Batches) -> Learned:
        examples = batches.of_step(step)
        if not (n := self.parts.objective.count(examples)):
            raise DataError(f"the batch of step {step} has no supervised token", "check the rows' completions")
        return Learned(examples, n, anchors=batches.anchors_of_step(step))

    def measure(self, examples: Sequence[Example]) -> Measurement:
        micros = self.parts.micros
        return measure(self.parts.decoder, self.parts.objective, micros.one_by_one(micros.cut(examples)),
                       self.references)
