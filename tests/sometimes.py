"""Parameters of a test that takes long for each: some always, the others where slow tests are asked for."""

from collections.abc import Iterable
from typing import Any

import pytest

SOME_FORMATS = ("Q4_0", "Q4_K", "Q6_K", "IQ4_NL", "BF16")  # one of each way to store weights


def mostly_slow(values: Iterable[Any], always: Iterable[Any]) -> list[Any]:
    """`values` for parametrize; those that are not in `always` are marked slow."""
    kept = [*always]
    return [value if value in kept else pytest.param(*(value if isinstance(value, tuple) else (value,)),
                                                     marks=pytest.mark.slow) for value in values]
