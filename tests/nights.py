"""Simulations of the gate: people who ask and sometimes rate, and nights in which its real rules test adapters.

The people know nothing of the gate. Each question has a right answer, A's and B's answers to it, and what a person
said about A's answer: nothing (silence), the right answer (a correction), praise, or a wrong answer that they take for
right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.daemon.jobs.decide import LEAST_DRAWN, GateRules
from edgetune.evaluation.acceptance import ALPHA, Decision, Paired, alpha_of_test

Bools = NDArray[np.bool_]
SILENT, CORRECTED, PRAISED, CONTRADICTED = range(4)
SHARE = 5  # one question in five is drawn


@dataclass(frozen=True)
class People:
    """Shares: of A's errors that are corrected, of its right answers that are praised, and of all that are answered
    with a correction to something wrong. checks: answers a day that somebody is asked about and rates; skips: share of
    these that they pass over; stops: whether they check no more that day after an error.
    """

    corrects: float = 1 / 3
    praises: float = 0.0
    contradicts: float = 0.0
    checks: int = 0
    skips: float = 0.0
    stops: bool = False

    def say(self, dice: np.random.Generator, right: Bools) -> NDArray[np.int_]:
        """What is said about answers that are right or wrong [N]."""
        chance = dice.random(len(right))
        said = np.where(right, np.where(chance < self.praises, PRAISED, SILENT),
                        np.where(chance < self.corrects, CORRECTED, SILENT))
        return np.where(dice.random(len(right)) < self.contradicts, CONTRADICTED, said)

    def rate(self, dice: np.random.Generator, right: bool) -> int:
        """What is said about an answer that somebody is asked about."""
        if dice.random() < self.skips:
            return SILENT
        if dice.random() < self.contradicts:
            return CONTRADICTED
        return PRAISED if right else CORRECTED


@dataclass(frozen=True)
class Pair:
    """Two adapters. accuracy: of A; gain: by which B's is greater. shared: share of the questions on which B answers as
    A does. nested: B differs from A only where it must: it mends so many errors as it breaks right answers, and `gain`
    more. likes: B rather mends what people correct unasked, as one does that learned their corrections.
    """

    accuracy: float
    gain: float = 0.0
    shared: float = 0.0
    nested: float = 0.0
    likes: bool = False

    def answers(self, dice: np.random.Generator, right: Bools, said: NDArray[np.int_]) -> tuple[Bools, Bools]:
        """Whether B is right, and whether it answers as A does [N]."""
        n = len(right)
        if self.nested:
            mends = min(1.0, (self.nested + self.gain) / (1 - self.accuracy))
            breaks = self.nested / self.accuracy
            changed = dice.random(n) < np.where(right, breaks, mends)
            return right ^ changed, ~changed
        if self.likes:  # all corrected ones are mended, and as many right ones broken that the accuracy is as it should
            mended = ~right & (said == CORRECTED)
            lost = max(0.0, mended.sum() / max(n, 1) - self.gain) / max(self.accuracy, 1e-9)
            broken = right & (dice.random(n) < lost)
            return (right | mended) & ~broken, ~(mended | broken)
        accuracy = self.accuracy + self.gain / (1 - self.shared)
        same = dice.random(n) < self.shared
        other = dice.random(n) < accuracy
        b = np.where(same, right, other)
        as_a = same | (right & b)  # two wrong answers differ, unless they are shared
        return b, as_a


@dataclass
class Sample:
    """The drawn questions since A became active. unasked: what was said before somebody was asked. lot: the order in
    which people are asked about them. reached: whether somebody was, or had rated one before it could come to that.
    """

    right: Bools = field(default_factory=lambda: np.empty(0, bool))
    said: NDArray[np.int_] = field(default_factory=lambda: np.empty(0, int))
    unasked: NDArray[np.int_] = field(default_factory=lambda: np.empty(0, int))
    lot: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    reached: Bools = field(default_factory=lambda: np.empty(0, bool))

    def night(self, dice: np.random.Generator, accuracy: float, people: People, asked: int) -> None:
        n = int(dice.binomial(asked, 1 / SHARE))
        right = dice.random(n) < accuracy
        said = people.say(dice, right)
        new = {"right": right, "said": said, "unasked": said, "lot": dice.random(n), "reached": np.zeros(n, bool)}
        for name, values in new.items():
            setattr(self, name, np.concatenate([getattr(self, name), values])[-256:])
        self.check(dice, people)

    def check(self, dice: np.random.Generator, people: People) -> None:
        """Somebody is asked about silent answers, by lot. Those that others rated before their turn are reached, too,
        and after the last that is rated nothing is.
        """
        passed = []
        rated = 0
        for i in np.argsort(self.lot):
            if rated == people.checks:
                break
            passed.append(i)
            if self.said[i] == SILENT:
                self.said[i] = people.rate(dice, bool(self.right[i]))
                if self.said[i] == SILENT:
                    continue
                rated += 1
                self.reached[passed] = True
                if people.stops and not self.right[i]:
                    break

    @property
    def deciding(self) -> Bools:
        """Of all drawn questions [N]: those that were reached, if they are eight, else all; back to the 128th that is
        silent.
        """
        chosen = self.reached if self.reached.sum() >= 8 else np.ones(len(self.right), bool)
        silent = np.flatnonzero(chosen & (self.said == SILENT))
        return chosen & (np.arange(len(chosen)) >= (silent[-128] if len(silent) >= 128 else 0))


def counts(said: NDArray[np.int_], a: Bools, b: Bools, as_a: Bools) -> tuple[int, int]:
    """Questions that B wins and loses, if silence means that A is right. said: about A, or another before it."""
    known = (said == CORRECTED) | (said == PRAISED)
    wins = known & b & ~a
    losses = ((said == SILENT) & ~as_a) | (known & a & ~b)
    return int(wins.sum()), int(losses.sum())


def as_world(right: Bools, said: NDArray[np.int_], b: Bools, as_a: Bools) -> list[dict[str, Any]]:
    """The same questions as texts: what was asked, both answers, and the answer that people say is right, or None."""
    rows = []
    for i, (a_right, word, b_right, same) in enumerate(zip(right, said, b, as_a, strict=True)):
        old = f"right {i}" if a_right else f"wrong {i}"
        new = old if same else f"right {i}" if b_right else f"otherwise {i}"
        truth = {SILENT: None, CORRECTED: f"right {i}", PRAISED: f"right {i}", CONTRADICTED: f"odd {i}"}[int(word)]
        rows.append({"asked": f"question {i}", "old": old, "new": new, "truth": truth})
    return rows


# ---- nights ----------------------------------------------------------------------------------------------------------


ONLY_CORRECTIONS = People(1.0)
A_THIRD = People(1 / 3)
TENTHS = People(0.1, 0.1)
PRAISE = People(0.0, 0.5)
CONTRADICTING = People(0.5, 0.1, contradicts=0.2)
CHECKING = People(1 / 3, checks=8)
SKIPPING = People(1 / 3, checks=3, skips=0.3)
STOPPING = People(1 / 3, contradicts=0.1, checks=8, stops=True)
EVERYBODY = (ONLY_CORRECTIONS, A_THIRD, TENTHS, PRAISE, CONTRADICTING, CHECKING, SKIPPING, STOPPING)
SHAPES = ({}, {"shared": 0.5}, {"shared": 0.8}, {"nested": 0.05}, {"nested": 0.2}, {"likes": True})
ASKED = 40  # questions a day


def passes(wins: int, losses: int, rows: int, tests_before: int) -> bool:
    return not rules(wins, losses, rows, tests_before).not_better


def rules(wins: int, losses: int, rows: int, tests_before: int) -> GateRules:
    """The real ones, with nothing but drawn questions."""
    nothing = Decision(Paired(0, 0), Paired(0, 0), alpha_of_test(ALPHA, tests_before))
    drawn = Paired(wins, losses, rows - wins - losses)
    return GateRules(nothing, nothing, nothing, Decision(drawn, drawn, nothing.level), tests_before)


def nights_until(dice: np.random.Generator, pair: Pair, people: People, nights: int, drift: bool = False) -> int:
    """The night after which an adapter is published, each night another one; 0: none is. drift: A and B have other
    accuracies each night, always by the same difference.
    """
    sample = Sample()
    tests = 0
    for night in range(nights):
        accuracy = float(dice.uniform(0.3, 0.9)) if drift else pair.accuracy
        sample.night(dice, accuracy, people, ASKED)
        b, as_a = pair.answers(dice, sample.right, sample.unasked)
        found = tested(sample, b, as_a, tests)
        if found and not found.not_better:
            return night + 1
        tests = found.test if found else tests
    return 0


def tested(sample: Sample, b: Bools, as_a: Bools, tests_before: int) -> GateRules | None:
    """None: too few questions were drawn."""
    chosen = sample.deciding
    if chosen.sum() < LEAST_DRAWN:
        return None
    wins, losses = counts(sample.said[chosen], sample.right[chosen], b[chosen], as_a[chosen])
    return rules(wins, losses, int(chosen.sum()), tests_before)


def publications(dice: np.random.Generator, pairs: Sequence[Pair], people: People) -> list[int]:
    """The nights in which an adapter is published, one a night, which then is the active one: the drawn questions, and
    what people said about them, stay. pairs: of what is active when the night comes, and of what it would be.
    """
    sample = Sample()
    tests = 0
    accuracy = pairs[0].accuracy
    found = []
    for night, pair in enumerate(pairs):
        sample.night(dice, accuracy, people, ASKED)
        b, as_a = replace(pair, accuracy=accuracy).answers(dice, sample.right, sample.unasked)
        verdict = tested(sample, b, as_a, tests)
        tests = verdict.test if verdict else tests
        if verdict and not verdict.not_better:
            found.append(night)
            sample.right, tests = b, 0
            accuracy += pair.gain
    return found


def share(pair: Pair, people: People, nights: int, runs: int, seed: int = 0, drift: bool = False) -> float:
    """The share of runs in which an adapter is published."""
    dice = np.random.default_rng(seed)
    return sum(bool(nights_until(dice, pair, people, nights, drift)) for _ in range(runs)) / runs
