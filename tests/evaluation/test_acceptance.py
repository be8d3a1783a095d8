"""edgetune.evaluation.acceptance: tests against counting, error rates simulated, intervals against published ones."""

import math
from itertools import product

import numpy as np
import pytest

from edgetune.evaluation.acceptance import Paired, Split, alpha_of_test, wilson

ALPHA = 0.1
RUNS = 4000
SLACK = 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)  # three standard deviations of a share of the runs


def test_the_sign_test_is_exact():
    """Against all ways that so many coins can fall."""
    for n in range(9):
        falls = [sum(coins) for coins in product((0, 1), repeat=n)]
        for wins in range(n + 1):
            found = Paired(wins, n - wins, ties=3)
            assert found.p_better == sum(heads >= wins for heads in falls) / 2**n
            assert found.p_worse == sum(heads <= wins for heads in falls) / 2**n
            assert found.p_two_sided == sum(abs(2 * heads - n) >= abs(2 * wins - n) for heads in falls) / 2**n
    assert Paired(0, 2000).p_worse < 1e-300  # no overflow
    assert Paired(1000, 1000).p_better > 0.5


def test_pairs_are_counted_of_whatever_can_be_ordered():
    assert Paired.of([1.0, 2.0, 3.0, 3.0], [2.0, 1.0, 3.0, 4.0]) == Paired(2, 1, 1)
    assert Paired.of([(False, -2.0), (True, 0.0)], [(False, -1.0), (False, -1.0)]) == Paired(1, 1)
    assert Paired(2, 1, 1) + Paired(1, 0, 1) == Paired(3, 1, 2)
    with pytest.raises(ValueError, match="shorter"):
        Paired.of([1, 2], [1])


def test_the_levels_of_all_tests_sum_to_alpha():
    levels = [alpha_of_test(ALPHA, before) for before in range(1000)]
    assert levels[:3] == pytest.approx([ALPHA / 2, ALPHA / 6, ALPHA / 12])
    assert sum(levels) == pytest.approx(ALPHA * 1000 / 1001)


@pytest.mark.parametrize("count", [*range(40), 400])
def test_half_of_the_rows_select_and_the_others_decide(count):
    """Also of few rows, so that from two on none of the halves is empty."""
    names = [f"row {i}" for i in range(count)]
    split = Split.of(names)
    assert split.selecting | split.deciding == set(names)
    assert (len(split.selecting), len(split.deciding)) == (count // 2, count - count // 2)
    assert Split.of([*reversed(names), *names]) == split


def test_rows_that_selected_do_not_decide():
    with pytest.raises(ValueError, match="1 rows were used to choose"):
        Split(frozenset("ab"), frozenset("bc"))


# ---- how often an adapter that is no better is published in a sequence of rounds -------------------------------------


def p_better(wins, of):
    """The p of so many wins `of` so many rows that differ, looked up in a table."""
    most = int(np.max(of))
    table = np.ones((most + 1, most + 1))
    for n in range(most + 1):
        table[n, :n + 1] = [Paired(won, n - won).p_better for won in range(n + 1)]
    found: np.ndarray = table[of, wins]
    return found


@pytest.mark.parametrize("rounds", [1, 5, 10, 20, 365])
def test_an_adapter_that_is_no_better_is_published_with_alpha_at_most(rounds):
    """Also where the number of questions drifts. A level that begins again with other questions, as each round of a
    ring A, B, A, B once did, is soon beyond alpha: with such levels this test fails.
    """
    dice = np.random.default_rng(rounds)
    levels = np.array([alpha_of_test(ALPHA, before) for before in range(rounds)])
    for questions in (np.full((RUNS, rounds), 40), dice.integers(5, 80, (RUNS, rounds))):
        p = p_better(dice.binomial(questions, 0.5), questions)
        assert (p <= levels).any(axis=1).mean() <= ALPHA + SLACK
        if rounds >= 5:
            assert (p <= levels[0]).any(axis=1).mean() > ALPHA + SLACK


def test_the_same_questions_again_do_not_break_the_bound():
    """A ring of two sets of questions, and rounds so alike that nine of ten answers stay as they were."""
    dice = np.random.default_rng(0)
    published = np.zeros(RUNS, bool)
    won = [dice.integers(0, 2, (RUNS, 40)) for _ in range(2)]  # by question of either set
    for before in range(20):
        now = won[before % 2]
        changed = dice.random(now.shape) < 0.1
        now[changed] = dice.integers(0, 2, int(changed.sum()))
        published |= p_better(now.sum(axis=1), 40) <= alpha_of_test(ALPHA, before)
    assert published.mean() <= ALPHA


@pytest.mark.parametrize(("right", "n", "low", "high"), [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_wilson(right, n, low, high):
    """The four examples of Newcombe (1998), method 3; what is right and what is wrong may change places."""
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)
