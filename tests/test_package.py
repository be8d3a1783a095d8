"""The package's face: its names, what a misspelt one says, and that without its kernels it says so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgetune
from edgetune.python_child import child


def test_public_names():
    assert set(edgetune.__all__) <= set(dir(edgetune))
    for name in edgetune.__all__:
        assert getattr(edgetune, name) is not None
    assert issubclass(edgetune.errors.UsageError, edgetune.EdgetuneError)
    for name in ("train", "Result", "Trainer", "run", "Served", "EdgetuneError"):
        assert f"\n    {name} " in edgetune.__doc__
        assert name in edgetune.__all__
    with pytest.raises(AttributeError, match="'trian'"):
        edgetune.trian  # noqa: B018


def test_a_source_tree_without_kernels_says_so(tmp_path):
    """Python in a clone's root imports the clone, whose extension `make dev` has not built."""
    shutil.copytree(Path(edgetune.__file__).parent, tmp_path / "edgetune",
                    ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for program in (["-c", "import edgetune; edgetune.train"], ["-m", "edgetune", "doctor"]):
        ended = subprocess.run([sys.executable, *program], cwd=tmp_path, capture_output=True, text=True,
                               env={**os.environ, "PYTHONPATH": ""})
        assert ended.returncode == 1
        last = ended.stderr.rstrip().splitlines()[-1]
        assert "kernels are not built" in last
        assert "make dev" in last
    assert len(ended.stderr.splitlines()) == 1


def test_processes_that_are_started_compute_with_one_thread_of_blas(monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert child("edgetune.daemon.jobs.worker")["env"]["OPENBLAS_NUM_THREADS"] == "1"
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")  # a person's own number
    assert child("edgetune.daemon.jobs.worker")["env"]["OPENBLAS_NUM_THREADS"] == "3"
