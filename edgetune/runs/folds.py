"""An encoder learns all of few rows, and parts of them test it, each answered by a training on the others.

A tenth of few rows is much to leave out: some labels would have two rows in place of three; and it is little to test
by. So nothing is held out. The parts say how many answers are right and when one is sure, and whether the encoder's own
training is better than its heads alone: of some tasks and few rows it is not, and then the heads alone are kept.
Letters: n rows.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from math import fsum
from operator import add
from pathlib import Path
from typing import Any

from ..adapters import store
from ..adapters.base import Artifact
from ..data.packing import Example
from ..formats.bundle import Bundle
from ..machine import device
from ..objectives.labelling import Labelling
from ..training.callbacks import RunCallbacks
from ..training.config import TrainConfig
from ..training.labelled import HEAD, Labelled
from ..training.throttle import Courtesy
from ..training.tradeoffs import Tradeoffs
from ..training.trainer import Trainer
from ..training.untaught import Untaught
from .answers import complete

PARTS = 5
HEADS = "the heads alone"
TRAINED = "after all steps"
ENOUGH = 64  # rows of parts that are tested, where there are more
FACT = "folds"  # in run.json


@dataclass(frozen=True)
class Tested:
    """What tests said of a way to train, by the rows of a part. losses: of each row. accuracy: the share of rows whose
    labels are all right.
    """

    losses: tuple[float, ...]
    accuracy: float
    untaught: Untaught

    def __add__(self, other: Tested) -> Tested:
        n, m = len(self.losses), len(other.losses)
        return Tested(self.losses + other.losses, (n * self.accuracy + m * other.accuracy) / (n + m),
                      self.untaught + other.untaught)

    @property
    def loss(self) -> float:
        """The mean loss, of probabilities as the adapter will give them."""
        calibrated = self.untaught.loss()
        return fsum(self.losses) / len(self.losses) if calibrated is None else calibrated

    def answers(self) -> dict[str, Any]:
        """The "answers" of run.json; before training there are none."""
        n, right, commonest = self.untaught.right() or (len(self.losses), self.accuracy * len(self.losses), 0.0)
        wins = round(right)
        return {"rows": round(n), "before": 0.0, "after": wins / round(n), "wins": wins, "losses": 0,
                "commonest": round(commonest), "pairs": []}


@dataclass(frozen=True)
class FoldedRun:
    """A run that has learned all of few rows, into `out`. objective: fitted to them."""

    bundle: Bundle
    out: Path
    examples: Sequence[Example]
    objective: Labelling
    config: TrainConfig
    record: dict[str, Any]
    callbacks: RunCallbacks

    def trainer(self, examples: Sequence[Example]) -> Trainer:
        """A trainer of some of the rows, with the micro-batches of the run."""
        gc.collect()  # of the trainer before it, whose parts point to one another
        self.bundle.gguf.release()
        device.trim()
        lengths = self.objective.lengths(self.examples, max_length=self.config.row_limit, share=False)
        planned = self.record["plan"]
        previous = Tradeoffs(**{field.name: planned[field.name] for field in fields(Tradeoffs)})
        found = Trainer(self.bundle, self.config, lengths=lengths, previous=previous, objective=self.objective)
        found.add_examples(examples)
        return found

    @property
    def should_stop(self) -> Callable[[], bool]:
        return Courtesy(self.callbacks.should_stop, self.callbacks.busy, self.callbacks.governor)


def is_due(record: Mapping[str, Any]) -> bool:
    """Whether a run that held nothing out, and has ended, is still to be tested: not after epochs that were added."""
    is_first = record["status"] == "done" and not record["start"] and not record["legs"]
    return is_first and not {FACT, "answers_missing"} & {*record}


def test(run: FoldedRun) -> dict[str, Any]:
    """run.json's content, which says what the tests said. The adapter is the better one. Raises Interrupted where the
    callbacks stop it: the same again begins from the first part.
    """
    parts = [*_parts(run.examples)]
    found: list[dict[str, Tested]] = []
    for number, part in enumerate(parts, start=1):
        run.callbacks.on_event({"event": FACT, "part": number, "parts": len(parts)})
        found.append(_of_part(run, part))
    ways = {name: reduce(add, (of_part[name] for of_part in found)) for name in found[0]}
    before = ways.pop("")
    kept = min(ways, key=lambda name: ways[name].loss)
    facts = {"parts": len(parts), "rows": sum(len(part) for part in parts), "kept": kept, "loss_before": before.loss,
             "loss_after": ways[kept].loss, "losses": {name: tested.loss for name, tested in ways.items()}}
    record = {**run.record, FACT: facts, "answers": ways[kept].answers()}
    record["verdict"] = _verdict(record)
    adapter = _heads_alone(run) if kept == HEADS else _trained(run, ways[kept].untaught)
    record["peak_rss_mib"] = device.peak_rss() / 2**20
    store.save_run(run.out, adapter, run.bundle.gguf, record)
    return record


def _of_part(run: FoldedRun, part: Sequence[int]) -> dict[str, Tested]:
    """Returns by ways to train what rows of a part say of a training on all others; "": what they say before it."""
    out = set(part)
    held = [run.examples[place] for place in part]
    trainer = run.trainer([example for place, example in enumerate(run.examples) if place not in out])
    found = {"": _tested(run, trainer, held)}
    while trainer.steps_done < trainer.total_steps:
        trainer.step(run.should_stop)
        if trainer.steps_done == HEAD and not run.objective.has_tags:
            found[HEADS] = _tested(run, trainer, held)
    if trainer.steps_done > HEAD or HEADS not in found:
        found[TRAINED] = _tested(run, trainer, held)
    return found


def _tested(run: FoldedRun, trainer: Trainer, held: Sequence[Example]) -> Tested:
    measured = trainer.measure(held, run.should_stop)
    source = trainer.source
    assert isinstance(source, Labelled)
    with trainer.stoppable(run.should_stop):
        return Tested(measured.rows, measured.metrics["accuracy"], source.untaught(held))


def _trained(run: FoldedRun, untaught: Untaught) -> Artifact:
    found = store.read_artifact(run.out, run.bundle.gguf)
    return replace(found, facts={**found.facts, **untaught.facts()})


def _heads_alone(run: FoldedRun) -> Artifact:
    """Fits the heads to all rows. All rows say, by separate folds, when an answer of the heads is sure."""
    trainer = run.trainer(run.examples)
    trainer.step(run.should_stop)
    trainer.conclude([], run.should_stop)
    return trainer.artifact()


def _parts(examples: Sequence[Example]) -> Iterator[list[int]]:
    """The places of the rows of each part that is tested. Rows of one label are dealt to the parts in turn; those with
    one text stay together.
    """
    groups: dict[bytes, list[int]] = {}
    for place, example in enumerate(examples):
        groups.setdefault(example.tokens.tobytes(), []).append(place)
    ordered = sorted(groups.values(), key=lambda places: examples[places[0]].document.tolist())
    tested = 0
    for number in range(PARTS):
        part = [place for places in ordered[number::PARTS] for place in places]
        if not part or len(part) == len(examples) or tested >= ENOUGH:
            return
        tested += len(part)
        yield part


def _verdict(record: Mapping[str, Any]) -> dict[str, Any]:
    tests = record[FACT]
    before, after = tests["loss_before"], tests["loss_after"]
    rows = f"rows that were held out in turn, in {tests['parts']} parts"
    step = HEAD if tests["kept"] == HEADS else record["verdict"]["step"]
    if after >= before:
        return {"kind": "unmeasured", "step": step, "sentence": f"It learned nothing that can be seen: the loss of "
                f"{rows}, was {before:.3g} before and {after:.3g} after; give it more rows, or see with edgetune data "
                "check what it can learn."}
    others = "; ".join(f"{name}: {loss:.3g}" for name, loss in tests["losses"].items() if name != tests["kept"])
    by = f" by {HEADS}" if tests["kept"] == HEADS else ""
    said = f"Learned{by}: the loss of {rows}, fell from {before:.3g} to {after:.3g}"
    said += f" ({others}). All rows were learned then;" if others else ". All rows were learned then;"
    return complete({"kind": "learned", "step": step, "sentence": said}, record["answers"], of_labels=True)
