"""Processes of jobs that the tests of this folder play."""

import pytest
from fake_workers import FakeWorkers


@pytest.fixture
def workers():
    """The processes of a service."""
    return FakeWorkers()
