"""The answers that the model draws to the rows' prompts, as a source of examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..data.lengths import Lengths
from ..data.packing import Batch, Example
from ..errors import UsageError
from ..models.base import Structure
from ..objectives.base import Objective
from ..objectives.drawn import Drawn, Rewarded
from . import length
from .batches import Batches
from .config import TrainConfig
from .passes import LossMeasurement
from .rewards import Expectation
from .rollouts import Known, Roller, answer_plan, keep
from .source import ExampleSource, Learned, SourceParts, SourceRoom


class AnswerExamples(ExampleSource):
    """Answers of the model; those that have a signal are learned."""

    keeps_tokenizer: ClassVar[bool] = True
    refers: ClassVar[bool] = True

    @classmethod
    def room(cls, objective: Objective, config: TrainConfig, lengths: Lengths, structure: Structure) -> SourceRoom:
        assert isinstance(objective, Drawn)
        if structure.cache is None:
            raise UsageError(f"{objective.name} needs a model that answers", "choose another method")
        units = len(lengths.units)
        steps = objective.steps_per_generation
        at_once = (steps * length.batch_of(config, units) if steps else units) or 1  # prompts answered together
        return SourceRoom(answer_plan(objective, at_once, lengths, config.row_limit, structure.n_tokens),
                          objective.keeps_start)

    def __init__(self, parts: SourceParts) -> None:
        objective = parts.objective
        assert isinstance(objective, Drawn)
        self.is_rewarded = isinstance(objective, Rewarded)
        if parts.rewards is None and self.is_rewarded:
            raise UsageError(f"{objective.name} needs something that rewards answers",
                             "name a grader or a reward function")
        assert parts.answers
        assert parts.tokenizer
        self.parts = parts
        self.objective = objective
        config = parts.config
        self.roller = Roller(parts.decoder, parts.answers, objective, parts.rewards, parts.tokenizer, config.seed,
                             config.row_limit, config.instruction)
        self.references = self.roller
        self._known: Known = {}  # of answers that are learned from again

    def of_step(self, step: int, batches: Batches) -> Learned:
        micros = self.parts.micros
        self._known = {}
        self.parts.decoder.before_block()
        micros.computing = True
        answers, metrics = self.roller.of_step(step, batches.of_step, batches.examples, batches.steps_per_epoch)
        telling = [answer for answer in answers if self.objective.has_signal(answer)]
        if self.objective.needs_reference:
            self.roller.refer(micros.cut(telling))
        micros.computing = False
        return Learned(telling, self.objective.count(answers) or 1.0, metrics, batches.anchors_of_step(step))

    def see(self, batch: Batch, logp: np.ndarray) -> None:
        if self.objective.compares_updates:
            keep(self._known, batch, logp)

    def after_step(self, step: int, batches: Batches) -> None:
        self.roller.learned(step, batches.steps_per_epoch, self._known)

    def measure(self, examples: Sequence[Example]) -> LossMeasurement:
        self.parts.micros.computing = True
        return self.roller.measure(examples)

    def progress(self, loss: float, metrics: Mapping[str, float]) -> float | None:
        """A reward is known when answers are drawn."""
        if not self.is_rewarded:
            return loss
        return -metrics["reward"] if "reward" in metrics else None

    def expect(self, examples: Sequence[Example]) -> Expectation | None:
        if not self.is_rewarded or self.objective.imitated_epochs:
            return None
        self.parts.micros.computing = True
        return self.roller.expect(examples)

    def state(self, step: int, batches: Batches) -> dict[str, Any] | None:
        return self.roller.state(step, batches.steps_per_epoch)

    def restore(self, state: Mapping[str, Any] | None) -> None:
        self.roller.restore(state)
