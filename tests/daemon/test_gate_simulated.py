"""The gate's promise, by people who do not rate at random: null adapters, worse ones and better ones."""

import math

import numpy as np
import pytest
from nights import (
    A_THIRD,
    CHECKING,
    CONTRADICTING,
    CORRECTED,
    EVERYBODY,
    ONLY_CORRECTIONS,
    SHAPES,
    Pair,
    Sample,
    as_world,
    counts,
    passes,
    publications,
    share,
)
from sometimes import mostly_slow

from edgetune.daemon.jobs.exam import AskedAdapter, Examiner, GateExam, RowScore
from edgetune.daemon.jobs.gate import evaluate
from edgetune.evaluation.acceptance import ALPHA
from edgetune.evaluation.judge import same


def slack(runs):
    """Three standard deviations of a share of ALPHA."""
    return 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


@pytest.mark.dev
@pytest.mark.parametrize("people", mostly_slow(EVERYBODY, [ONLY_CORRECTIONS, CHECKING]))
@pytest.mark.parametrize("shape", SHAPES)
def test_an_adapter_that_is_no_better_is_seldom_published_in_ten_nights(people, shape):
    """Errors that are independent, shared and nested; and one that mends what was corrected and breaks as much."""
    runs = 120
    for accuracy in (0.5, 0.7, 0.9):
        if 1 - accuracy >= shape.get("nested", 0):
            assert share(Pair(accuracy, **shape), people, 10, runs) <= ALPHA + slack(runs)


@pytest.mark.dev
@pytest.mark.parametrize("people", mostly_slow(EVERYBODY, [ONLY_CORRECTIONS, CHECKING]))
def test_nor_is_one_in_a_year(people):
    runs = 40
    for shape in ({"shared": 0.5}, {"nested": 0.1}, {"likes": True}):
        assert share(Pair(0.7, **shape), people, 365, runs) <= ALPHA + slack(runs)


def test_nor_is_one_where_the_traffic_drifts():
    assert share(Pair(0.6, shared=0.5), ONLY_CORRECTIONS, 60, 100, drift=True) <= ALPHA + slack(100)


@pytest.mark.dev
@pytest.mark.parametrize("people", mostly_slow(EVERYBODY, [ONLY_CORRECTIONS, CHECKING]))
@pytest.mark.parametrize("loss", [-0.05, -0.1])
def test_a_worse_adapter_that_mends_what_was_corrected_is_not_published(people, loss):
    runs = 120
    for shape in ({}, {"nested": 0.08}, {"likes": True}):
        assert share(Pair(0.7, loss, **shape), people, 20, runs) <= ALPHA + slack(runs)


def test_a_much_better_adapter_is_published_where_all_errors_are_corrected():
    """One of 80 %, in place of a base that is never right, on the first night; of 90 in place of 50 within five."""
    assert share(Pair(0.0, 0.8), ONLY_CORRECTIONS, 1, 200) >= 0.8
    assert share(Pair(0.5, 0.4), ONLY_CORRECTIONS, 5, 200) >= 0.6


@pytest.mark.parametrize("people", mostly_slow(EVERYBODY, [ONLY_CORRECTIONS, CHECKING]))
@pytest.mark.parametrize("shape", mostly_slow([{}, {"shared": 0.5}, {"nested": 0.05}], [{"shared": 0.5}]))
def test_nor_is_one_after_an_adapter_that_was_better(people, shape):
    """The questions that published the first one are in the test of the next ones."""
    dice = np.random.default_rng(0)
    runs, false = 0, 0
    while runs < 100:
        first = Pair(0.3, 0.4)
        published = publications(dice, [first] * 5 + [Pair(0.7, **shape)] * 15, people)
        if not published or published[0] > 4:  # nothing was better, so this says nothing of what comes after it
            if people.corrects < 1 and not people.checks:
                return  # few of these ever see a better one
            continue
        runs += 1
        false += any(night > 4 for night in published)
    assert false / runs <= ALPHA + slack(runs)


class World(Examiner):
    """Both adapters' answers to made-up questions."""

    def __init__(self, world):
        rated = [{"prompt": row["asked"], "completion": row["truth"]} for row in world if row["truth"]]
        unrated = [{"prompt": row["asked"]} for row in world if not row["truth"]]
        super().__init__(GateExam([], drawn=rated, unrated=unrated))
        self.said = {row["asked"]: row for row in world}

    def answered(self, adapter, rows):
        loss = 1.0 if adapter == "old" else 0.1
        return {key: RowScore(loss, same(row["completion"], self.said[row["prompt"]][adapter]))
                for key, row in rows.items()}

    def replies(self, adapter, rows):
        return [self.said[row["prompt"]][adapter] for row in rows]


@pytest.mark.parametrize("seed", range(8))
def test_the_simulation_counts_as_the_gate_does(seed):
    """From texts, by the real `evaluate`. The new adapter finds every right answer likelier, which counts nothing."""
    dice = np.random.default_rng(seed)
    sample = Sample()
    sample.night(dice, 0.6, CONTRADICTING if seed % 2 else A_THIRD, 300)
    pair = Pair(0.6, 0.1, **SHAPES[seed % len(SHAPES)])
    b, as_a = pair.answers(dice, sample.right, sample.said)
    examiner = World(as_world(sample.right, sample.said, b, as_a))
    verdict = evaluate(examiner, examiner.exam, AskedAdapter("old"), AskedAdapter("new"))
    assert (verdict.wins, verdict.losses) == counts(sample.said, sample.right, b, as_a)
    assert verdict.tests["drawn"]["ties"] == len(b) - verdict.wins - verdict.losses
    assert verdict.passed == passes(verdict.wins, verdict.losses, len(b), 0)
    assert verdict.drawn == {"rows": len(b), "unrated": len(examiner.exam.unrated),
                             "changed": int(((sample.said == 0) & ~as_a).sum())}


def test_corrections_by_themselves_would_publish_what_is_no_better():
    """What the sample is for: on the corrected questions A is always wrong, so that B can only win."""
    dice = np.random.default_rng(0)
    sample = Sample()
    sample.night(dice, 0.7, ONLY_CORRECTIONS, 400)
    b, _ = Pair(0.7, shared=0.5).answers(dice, sample.right, sample.said)
    corrected = sample.said == CORRECTED
    wins, losses = int((corrected & b).sum()), int((corrected & sample.right & ~b).sum())
    assert losses == 0
    assert passes(wins, losses, int(corrected.sum()), 0)
