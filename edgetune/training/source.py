"""The source of a step's examples: the contract, and rows, the simplest source.

To add one, write a class that is an `ExampleSource` and give it to `Trainer(source=...)`. The trainer asks it for the
examples of each step, has it measure held-out ones, and keeps its state in checkpoints. `answers.py` has the answers
that a model draws; tests/training/test_source.py has a small one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..backends.arena import Buffer
from ..data.lengths import Lengths
from ..data.packing import Batch, Example
from ..errors import DataError
from ..models.base import Passes, Structure
from ..objectives.base import Objective
from .batches import Batches, Micros
from .config import TrainConfig
from .passes import LossMeasurement, References, measure
from .reference import Reference

if TYPE_CHECKING:
    from ..llamacpp.tokenizer import Tokenizer
    from ..serving.rollouts.plan import AnswerPlan
    from .rewards import Expectation, Rewards

KINDS = {"rows": "source:RowExamples", "answers": "answers:AnswerExamples", "on-policy": "teachers:OnPolicy",
         "taught": "teachers:Taught", "labelled": "labelled:Labelled"}
"""The module of this package and the class of each, by `Objective.source`."""


@dataclass(frozen=True)
class SourceRoom:
    """The memory that a source needs in addition to the network's. answers: those drawn at once, as many as the budget
    allows; keeps_start: whether the adapter that training starts from stays in memory; buffers: other arrays; known:
    bytes besides the plan's, such as another network.
    """

    answers: AnswerPlan | None = None
    keeps_start: bool = False
    buffers: tuple[Buffer, ...] = ()
    known: int = 0


@dataclass(frozen=True)
class Learned:
    """The examples of a step. n: the divisor of its loss. anchors: imitated together with the examples. loss: of a step
    without examples, in which the source itself has learned.
    """

    examples: list[Example]
    n: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    anchors: Sequence[Example] = ()
    loss: float = 0.0


@dataclass(frozen=True)
class SourceParts:
    """The parts that a source works with. answers: of the plan; tokenizer: None unless the source keeps one open."""

    decoder: Passes
    objective: Objective
    config: TrainConfig
    micros: Micros
    reference: Reference
    answers: AnswerPlan | None = None
    rewards: Rewards | None = None
    tokenizer: Tokenizer | None = None


class ExampleSource(ABC):
    """A source of examples. keeps_tokenizer: whether it needs a tokenizer while training. refers: whether it computes
    the reference model's log p itself. is_rewarded: whether held-out examples are measured by rewards. milestones:
    names of what is trained after certain steps, when held-out examples are measured in any case. references: the
    source of the reference's log p.
    """

    keeps_tokenizer: ClassVar[bool] = False
    refers: ClassVar[bool] = False
    is_rewarded: bool = False
    milestones: ClassVar[Mapping[int, str]] = {}
    references: References

    @classmethod
    def room(cls, objective: Objective, config: TrainConfig, lengths: Lengths,  # noqa: ARG003
             structure: Structure) -> SourceRoom:  # noqa: ARG003
        """The memory for rows of these lengths. Raises UsageError for a network that it cannot use."""
        return SourceRoom()

    @abstractmethod
    def __init__(self, parts: SourceParts) -> None: ...

    @abstractmethod
    def of_step(self, step: int, batches: Batches) -> Learned:
        """The examples of step 1, 2, ...; without any, nothing is learned."""

    def see(self, batch: Batch, logp: np.ndarray) -> None:  # noqa: B027  # most keep nothing of it
        """Takes a batch that the objective saw in the step, and its log p [S], which is valid during the call."""

    def after_step(self, step: int, batches: Batches) -> None:  # noqa: B027  # most keep nothing of it
        """Follows the update."""

    @abstractmethod
    def measure(self, examples: Sequence[Example]) -> LossMeasurement:
        """The objective's loss and metrics, or the rewards, on held-out examples."""

    def progress(self, loss: float, metrics: Mapping[str, float]) -> float | None:  # noqa: ARG002
        """A number that falls as a step learns more; None if the step gives none."""
        return loss

    def expect(self, examples: Sequence[Example]) -> Expectation | None:  # noqa: ARG002
        """The expectation before the first step, if there is one. Raises UsageError if nothing can be learned."""
        return None

    def facts(self, learned: Sequence[Example], held: Sequence[Example]) -> dict[str, Any]:  # noqa: ARG002
        """Facts about the adapter in the arena, with which training ends, as JSON: they are kept with it."""
        return {}

    def identity(self) -> dict[str, str]:
        """What else must be unchanged when a run is resumed, by the names that a user knows."""
        return {}

    def state(self, step: int, batches: Batches) -> dict[str, Any] | None:  # noqa: ARG002
        """The state after `step` steps without rows and adapter, as JSON: the next step depends on it. None: none."""
        return None

    def restore(self, state: Mapping[str, Any] | None) -> None:  # noqa: B027  # most have no state
        """The inverse of `state`."""


class RowExamples(ExampleSource):
    """The rows themselves."""

    def __init__(self, parts: SourceParts) -> None:
        self.parts = parts
        self.references = parts.reference

    def of_step(self, step: int, batches: Batches) -> Learned:
        examples = batches.of_step(step)
        if not (n := self.parts.objective.count(examples)):
            raise DataError(f"the batch of step {step} has no supervised token", "check the rows' completions")
        return Learned(examples, n, anchors=batches.anchors_of_step(step))

    def measure(self, examples: Sequence[Example]) -> LossMeasurement:
        micros = self.parts.micros
        return measure(self.parts.decoder, self.parts.objective, micros.one_by_one(micros.cut(examples)),
                       self.references)

    def facts(self, learned: Sequence[Example], held: Sequence[Example]) -> dict[str, Any]:
        if not any(example.item for example in learned):
            return {}
        from .letters import facts_of_letters  # here: memory of whoever trains without such questions
        return facts_of_letters(self.parts.decoder, self.parts.micros, learned, held)


def source_of(objective: Objective) -> type[ExampleSource]:
    """The source of the examples that an objective learns from. Its module is imported only now, as a board's memory
    holds all that are.
    """
    found: type[ExampleSource] = resolve_name(f"{__package__}.{KINDS[objective.source]}")
    return found
