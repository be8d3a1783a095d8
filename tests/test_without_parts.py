"""Without the folder of a part everything else works: each folder is removed in turn from a copy of the project."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgetune.manifest import manifests

ROOT = Path(__file__).parents[1]
ALWAYS = ("test_structure.py", "test_parts.py", "cli/test_help.py", "cli/test_lazy.py", "daemon/test_service.py",
          "daemon/test_kinds.py", "daemon/test_sources.py", "daemon/test_schema.py", "daemon/test_unit.py")
TESTS = os.environ.get("EDGETUNE_WITHOUT_PARTS", " ".join(ALWAYS)).split()  # "." for the whole suite


@pytest.mark.slow  # half a minute each; the whole suite for each takes an hour
@pytest.mark.parametrize("name", [manifest.name for manifest in manifests()])
def test_all_else_works_without_its_folder(name, tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", ".git", ".hypothesis", "build", "*.pyc")
    for folder in ("edgetune", "tests", "docs", "examples", "packaging", "devices"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored, symlinks=True)
    for file in (*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.txt"), ROOT / "Makefile"):
        shutil.copy(file, tmp_path)
    shutil.rmtree(tmp_path / "edgetune" / "parts" / name)
    shutil.rmtree(tmp_path / "tests" / "parts" / name, ignore_errors=True)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=tmp_path / "tests", capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stdout[-4000:]
