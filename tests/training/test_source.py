"""A source of examples that the package does not know, trained, stopped and resumed: the trainer asks it alone.

It repeats the rows with the largest losses of the last measurement of each: a curriculum with a state of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from counting import OPTIONS, sequences

from edgetune.backends.arena import Buffer
from edgetune.data.lengths import Lengths
from edgetune.data.packing import Batch, Example
from edgetune.formats.bundle import Bundle
from edgetune.models.base import Structure
from edgetune.objectives.base import Objective
from edgetune.training.batches import Batches
from edgetune.training.config import TrainConfig
from edgetune.training.passes import LossMeasurement, measure
from edgetune.training.source import ExampleSource, Learned, SourceParts, SourceRoom
from edgetune.training.trainer import Trainer

AT_ONCE = 3


class Hardest(ExampleSource):
    @classmethod
    def room(cls, objective: Objective, config: TrainConfig, lengths: Lengths,  # noqa: ARG003
             structure: Structure) -> SourceRoom:  # noqa: ARG003
        return SourceRoom(buffers=(Buffer("hardness", (8,), "run"),))

    def __init__(self, parts: SourceParts) -> None:
        self.parts = parts
        self.references = parts.reference
        self.losses: dict[int, float] = {}
        self.seen: list[tuple[Example, float]] = []

    def of_step(self, step: int, batches: Batches) -> Learned:
        ranked = sorted(range(len(batches.examples)), key=lambda i: -self.losses.get(i, np.inf))
        self.chosen = ranked[:AT_ONCE]
        self.seen = []
        examples = [batches.examples[i] for i in self.chosen]
        return Learned(examples, self.parts.objective.count(examples), {"step": float(step)})

    def see(self, batch: Batch, logp: np.ndarray) -> None:
        self.seen += [(example, -float(logp[part].mean())) for example, part in batch.parts()]

    def after_step(self, step: int, batches: Batches) -> None:  # noqa: ARG002
        found = {id(example): loss for example, loss in self.seen}
        self.losses |= {i: found[id(batches.examples[i])] for i in self.chosen}

    def measure(self, examples: Sequence[Example]) -> LossMeasurement:
        micros = self.parts.micros
        return measure(self.parts.decoder, self.parts.objective, micros.one_by_one(micros.cut(examples)))

    def state(self, step: int, batches: Batches) -> dict[str, Any]:  # noqa: ARG002
        return {str(i): loss for i, loss in self.losses.items()}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        self.losses = {int(i): loss for i, loss in (state or {}).items()}


def trainer(bundle: Bundle) -> Trainer:
    made = Trainer(bundle, source=Hardest, **{**OPTIONS, "steps": 8, "optimizer_state": "float"})
    made.add_examples(sequences(6))
    return made


def test_it_chooses_what_is_learned(bundle):
    made = trainer(bundle)
    assert "hardness" in made.arena
    before = made.loss(made.examples)[0]
    results = [made.step() for _ in range(8)]
    assert [result.metrics["step"] for result in results] == [*map(float, range(1, 9))]
    assert len(made.source_state() or {}) == 6  # all rows, those never seen first
    assert made.loss(made.examples)[0] < before - 0.1


def test_its_state_continues_a_training(bundle):
    whole = trainer(bundle)
    for _ in range(6):
        whole.step()
    first = trainer(bundle)
    for _ in range(3):
        first.step()
    second = trainer(bundle)
    for name in first.state_arrays:
        second.arena.flat(name)[:] = first.arena.flat(name)
    second.steps_done = 3
    second.source.restore(first.source_state())
    for _ in range(3):
        second.step()
    assert np.array_equal(second.arena.flat("lora"), whole.arena.flat("lora"))


def test_without_its_state_other_rows_are_learned(bundle):
    made = trainer(bundle)
    made.step()
    first = list(made.source.chosen)
    made.step()
    assert set(made.source.chosen).isdisjoint(first)
    made.source.restore(None)
    made.step()
    assert made.source.chosen == first


@pytest.mark.parametrize("kind", [None, Hardest])
def test_the_default_is_what_the_objective_has(bundle, kind):
    made = Trainer(bundle, source=kind, **OPTIONS)
    assert type(made.source).__name__ == ("RowExamples" if kind is None else "Hardest")
