"""How long a compression measures, in tests of it."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def speeds_are_measured_by_one_call() -> Iterator[None]:
    """Nine of them would take half a second of each compression, and tests ask only that what is estimated is shown."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgetune.compress.estimate.LEAST_SECONDS", 0.0)
        yield
