"""A daemon's state that has been in use, for tests that damage it or continue it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from services import make_state


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: copy it."""
    return make_state(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"
