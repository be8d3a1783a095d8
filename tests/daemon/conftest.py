"""A daemon's state that has been in use, for tests that damage it or continue it; a service that learns."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_workers import FakeWorkers
from learners import opened
from services import make_state
from tiny import write_tiny

from edgetune.daemon.service import Service


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: copy it."""
    return make_state(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="session")
def tiny_q8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in Q8_0. Read only."""
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", formats="Q8_0")


@pytest.fixture
def workers() -> FakeWorkers:
    """The processes of `service`."""
    return FakeWorkers()


@pytest.fixture
def service(tiny_q8: Path, tmp_path: Path, workers: FakeWorkers) -> Iterator[Service]:
    """Learns when it is told to, and trains nothing: of tests that open no service themselves."""
    with opened(tiny_q8, tmp_path, start_process=workers, learn_rows=10) as service:
        yield service


@pytest.fixture
def trains(tiny_q8: Path, tmp_path: Path) -> Iterator[Service]:
    """The same in earnest."""
    with opened(tiny_q8, tmp_path, learn_rows=10, canary_rise="off") as service:  # kernels differ in the canary's rise
        yield service
