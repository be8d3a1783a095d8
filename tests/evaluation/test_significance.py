"""edgetune.evaluation.significance: against counting."""

from itertools import product

from edgetune.evaluation.significance import sign_test


def test_sign_test_is_exact() -> None:
    """Against all ways that so many coins can fall."""
    for n in range(9):
        falls = [sum(coins) for coins in product((0, 1), repeat=n)]
        for wins in range(n + 1):
            assert sign_test(wins, n - wins) == sum(heads <= wins for heads in falls) / 2**n
    assert sign_test(0, 2000) < 1e-300  # no overflow
    assert sign_test(1000, 1000) > 0.5
