"""Rows with labels as a source of examples: the first step fits heads of classes alone, the others train all.

A head that is fitted to the vectors of the untrained encoder takes seconds and no backward pass. Training from there
changes the encoder less than training from a random head (Kumar et al. 2022, linear probing before fine-tuning).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ..adapters.heads import CLASSES, MULTILABEL
from ..data.lengths import Lengths
from ..data.packing import Batch, Example
from ..errors import DataError, UsageError
from ..models.base import Structure
from ..objectives.base import Objective
from ..objectives.labelling import HeadTargets, Labelling
from ..serving import likeness, sureness
from ..serving.likeness import Likeness
from . import logistic
from .batches import Batches
from .config import TrainConfig
from .passes import LossMeasurement
from .source import Learned, RowExamples, SourceParts, SourceRoom
from .untaught import HeadAnswers, Told, Untaught

HEAD = 1  # the step that fits the heads
MEASURED = 256  # examples by which its loss is known


class Labelled(RowExamples):
    milestones: ClassVar[dict[int, str]] = {HEAD: "the heads alone"}

    def __init__(self, parts: SourceParts) -> None:
        super().__init__(parts)
        assert isinstance(parts.objective, Labelling)
        self.objective = parts.objective

    @classmethod
    def room(cls, objective: Objective, config: TrainConfig, lengths: Lengths,  # noqa: ARG003
             structure: Structure) -> SourceRoom:
        assert isinstance(objective, Labelling)
        if not objective.is_fitted:
            raise UsageError(f"the labels that {objective.name} learns are not known", "name the rows, or give labels")
        rows = len(lengths.units)
        first, *_ = structure.head_groups(objective.heads)
        width = first.size // objective.heads[0].size - 1  # besides them each label has a bias
        regressions = {head: rows * (3 + (head.size if head.name == MULTILABEL.name else 1))
                       for head in objective.heads if head.name in (CLASSES.name, MULTILABEL.name)}
        fit = max((logistic.fit_bytes(width, head.size) for head in regressions), default=0)
        return SourceRoom(known=fit + 4 * (width * rows + sum(regressions.values())))

    def of_step(self, step: int, batches: Batches) -> Learned:
        if step > HEAD:
            return super().of_step(step, batches)
        examples = batches.examples
        vectors = self.vectors(examples)
        heads = self.parts.decoder.label_heads()  # those that read vectors come first
        for targets, (weights, bias) in zip(self.objective.targets(examples), heads, strict=False):
            weights[:], bias[:] = logistic.fit(vectors, targets, len(bias), penalty(vectors, targets, len(bias)))
        return Learned([], 1.0, loss=self.measure(examples[:MEASURED]).loss)

    def vectors(self, examples: Sequence[Example]) -> np.ndarray:
        """The vectors [n, D] of examples, each of length 1. Equal texts are computed once."""
        micros = self.parts.micros
        places: dict[bytes, int] = {}
        numbers = [places.setdefault(example.tokens.tobytes(), len(places)) for example in examples]
        firsts = [examples[i] for i in np.unique(numbers, return_index=True)[1]]
        found = None
        done = 0
        for batch in micros.one_by_one(micros.cut(firsts)):
            assert isinstance(batch, Batch)
            pooled = self.parts.decoder.pooled(batch)
            if found is None:
                found = np.empty((len(firsts), pooled.shape[1]), pooled.dtype)
            found[done:done + len(pooled)] = pooled
            done += len(pooled)
        assert found is not None
        return found if len(firsts) == len(examples) else found[numbers]

    def measure(self, examples: Sequence[Example]) -> LossMeasurement:
        """The loss, and the share of rows whose labels are all right."""
        if self.parts.objective.needs_logp:
            return super().measure(examples)
        micros = self.parts.micros
        losses: list[float] = []
        total = 0.0
        right = supervised = 0
        for batch in micros.one_by_one(micros.cut(examples)):
            assert isinstance(batch, Batch)
            best = np.empty(batch.supervised.size, np.int32)
            weighted = -self.parts.decoder.score(batch, best) * batch.supervised_weights
            for example, part in batch.parts():
                losses.append(float(weighted[part].sum()) / self.parts.objective.count([example]))
                right += bool((best[part] == batch.targets[part]).all())
            total += float(weighted.sum(dtype=np.float64))
            supervised += batch.supervised.size
        if not losses:
            raise DataError("the rows have no label", "check their completions")
        return LossMeasurement(total / self.parts.objective.count(examples), supervised,
                               {"accuracy": right / len(losses)}, tuple(losses))

    # ---- when an answer is sure -----------------------------------------------------------------------------------

    def facts(self, learned: Sequence[Example], held: Sequence[Example]) -> dict[str, Any]:
        """Says by answers to examples that were not learned when an answer is sure: by heads that are fitted to the
        others if the heads alone were trained, else by held-out examples. It says by their vectors which questions are
        like the learned ones.
        """
        if not self.objective.says_sure:
            return {}
        with self.parts.decoder.linear.off():
            vectors = self.vectors(learned)
            others = self.vectors(held) if len(held) >= sureness.LEAST_ROWS else vectors[:0]
        targets = self.objective.targets(learned)
        found = self.parts.decoder.adapter.artifact()
        is_base = not found.tensors and not any(pair.a.any() and pair.b.any() for pair in found.pairs.values())
        untaught = self._of_folds(vectors, targets) if is_base and not self.objective.has_tags else self.untaught(held)
        return {**untaught.facts(), likeness.NAME: _likeness(vectors, targets, others).to_json()}

    def untaught(self, held: Sequence[Example]) -> Untaught:
        """The answers of the adapter in the arena to examples that it did not learn."""
        if not self.objective.says_sure:
            return Untaught()
        if not self.objective.calibrates:
            return Untaught(told=self._told(held))
        targets = self.objective.targets(held) if held else [HeadTargets.of_all(np.empty(0, np.int32))] * len(
            self.objective.heads)
        return Untaught(tuple(HeadAnswers(self._probabilities([held[row] for row in own.rows], number), own.values,
                                          own.shares) for number, own in enumerate(targets)))

    def _of_folds(self, vectors: np.ndarray, targets: Sequence[HeadTargets]) -> Untaught:
        """The answers of heads to examples of folds that they did not learn. A question that is there several times
        counts once, unless its answers are shares.
        """
        sizes = [len(bias) for _, bias in self.parts.decoder.label_heads()]
        if not self.objective.calibrates:
            return Untaught(told={sureness.ANSWERS: self._told_of_folds(vectors, targets, sizes)})
        heads = []
        for own, k in zip(targets, sizes, strict=True):
            p = logistic.out_of_fold(vectors, own, k, penalty(vectors, own, k))
            is_whole = (own.shares == 1).all()
            counted = logistic.distinct(vectors[own.rows]) if is_whole else np.arange(len(p))
            heads.append(HeadAnswers(p[counted], own.values[counted], own.shares[counted]))
        return Untaught(tuple(heads))

    def _probabilities(self, examples: Sequence[Example], number: int) -> np.ndarray:
        """The probabilities [n, k] of the labels of a head."""
        sizes = [head.size for head in self.objective.heads]
        first = sum(sizes[:number])
        asking = [replace(example, document=np.array([first], np.int32), shares=np.ones(1, np.float32))
                  for example in examples]
        micros = self.parts.micros
        parts = [np.empty((0, sizes[number]), np.float32)]
        for batch in micros.one_by_one(micros.cut(asking)):
            assert isinstance(batch, Batch)
            parts.append(np.exp(self.parts.decoder.labels(batch)[:, first:first + sizes[number]]))
        return np.concatenate(parts)

    @staticmethod
    def _told_of_folds(vectors: np.ndarray, targets: Sequence[HeadTargets], sizes: Sequence[int]) -> Told:
        probability = np.ones(len(vectors))
        right = np.ones(len(vectors), bool)
        for own, k in zip(targets, sizes, strict=False):
            for rows, p in logistic.folds(vectors, own, k, penalty(vectors, own, k)):
                probability[rows] *= p.max(1)
                right[rows] &= p.argmax(1) == own.values[rows]
        counted = logistic.distinct(vectors)
        return Told(sureness.UNLIKE, probability[counted].tolist(), right[counted].tolist())

    def _told(self, examples: Sequence[Example]) -> dict[str, Told]:
        """Answers; and where they have values from the question, their kinds. Of kinds no tenth is unlike the learned
        ones: by their vectors it is known which are.
        """
        micros = self.parts.micros
        answers = Told(sureness.UNLIKE)
        kinds = Told(0.0)
        for batch in micros.one_by_one(micros.cut(examples)):
            assert isinstance(batch, Batch)
            logp = self.parts.decoder.labels(batch)
            is_right = logp.argmax(1) == batch.targets
            for example, part in batch.parts():
                answers.add(logp[part].max(1), is_right[part])
                kinds.add(logp[part].max(1)[:example.document.size], is_right[part][:example.document.size])
        found = {sureness.ANSWERS: answers}
        if self.objective.has_tags and self.objective.targets(examples):
            found[sureness.KINDS] = kinds
        return found


def penalty(vectors: np.ndarray, targets: HeadTargets, k: int) -> float:
    """The penalty of a head: chosen for classes, the same for labels that are each there or not."""
    return logistic.best_c(vectors, targets, k) if targets.values.ndim == 1 else logistic.C


def _likeness(vectors: np.ndarray, targets: Sequence[HeadTargets], others: np.ndarray) -> Likeness:
    """Compares by the labels of each field; if some rows lack some, by the labels of all fields together."""
    if all(len(own.rows) == len(vectors) for own in targets):
        return Likeness.of(vectors, [own.values for own in targets], others)
    firsts = np.cumsum([0, *(int(own.values.max(initial=0)) + 1 for own in targets)], dtype=np.int32)
    labels = np.concatenate([own.values + first for own, first in zip(targets, firsts, strict=False)])
    return Likeness.of(vectors[np.concatenate([own.rows for own in targets])], [labels], others)
