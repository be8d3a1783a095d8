"""Nights in which adapters are tested by the gate's real rules, on the questions of simulated people."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from people import Bools, Pair, People, Sample, counts

from edgetune.daemon.jobs.decide import LEAST_DRAWN, GateRules
from edgetune.evaluation.acceptance import ALPHA, Decision, Paired, alpha_of_test

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
