"""edgetune.evaluation.significance: against counting, and against published intervals."""

from itertools import product

import pytest

from edgetune.evaluation.significance import sign_test, two_sided, wilson


def test_sign_test_is_exact() -> None:
    """Against all ways that so many coins can fall."""
    for n in range(9):
        falls = [sum(coins) for coins in product((0, 1), repeat=n)]
        for wins in range(n + 1):
            assert sign_test(wins, n - wins) == sum(heads <= wins for heads in falls) / 2**n
    assert sign_test(0, 2000) < 1e-300  # no overflow
    assert sign_test(1000, 1000) > 0.5


def test_two_sided_counts_both_directions() -> None:
    for n in range(9):
        falls = [sum(coins) for coins in product((0, 1), repeat=n)]
        for heads in range(n + 1):
            as_far = sum(abs(2 * fall - n) >= abs(2 * heads - n) for fall in falls)
            assert two_sided(heads, n - heads) == as_far / 2**n


@pytest.mark.parametrize(("right", "n", "low", "high"), [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_wilson(right: int, n: int, low: float, high: float) -> None:
    """The four examples of Newcombe (1998), method 3; what is right and what is wrong may change places."""
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)
