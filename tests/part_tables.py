"""What the tests of parts add to tables that other tests and the reference read: tests/parts/NAME/tables.py has it."""

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from edgetune.manifest import manifests

PARTS = Path(__file__).parent / "parts"


@cache
def _tables() -> list[ModuleType]:
    found = []
    for path in (PARTS / manifest.name / "tables.py" for manifest in manifests()):
        if path.exists():
            spec = importlib.util.spec_from_file_location(f"tables_of_{path.parent.name}", path)
            assert spec
            assert spec.loader
            found.append(importlib.util.module_from_spec(spec))
            spec.loader.exec_module(found[-1])
    return found


def needs(name: str) -> Any:
    """Marks a test of a part that uses another, which may be missing."""
    import pytest
    return pytest.mark.skipif(name not in (manifest.name for manifest in manifests()), reason=f"{name} is not here")


def of_parts(name: str) -> list[Any]:
    """The items of all lists of this name, by part."""
    return [item for table in _tables() for item in getattr(table, name, ())]


def options_of_parts(model: Path, folder: Path) -> dict[str, Any]:
    """The options of a daemon of this model with all that parts serve; their files are in a folder."""
    return {name: value for options in of_parts("OPTIONS") for name, value in options(model, folder).items()}
