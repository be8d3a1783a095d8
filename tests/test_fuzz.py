"""A short run of `make fuzz`, and that it sees what it looks for."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from proofs.fuzz import apart, disagreements

FUZZ = Path(__file__).parent / "proofs" / "fuzz.py"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("models", 2), ("states", 1)])
def test_a_short_run(name, count):
    command = [sys.executable, FUZZ, "--only", name, "--count", str(count), "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} cases of seed 7, 0 wrong" in done.stdout


def found(train="", plan="", info="", serve=""):
    return {"train": train, "plan": plan, "info": info, "serve": serve, "losses": {}}


@pytest.mark.parametrize(("case", "wrong"), [
    (found(), 0), (found("FormatError: x", "x", "x", "x"), 0), (found("UnsupportedError: x", "x", "x", ""), 0),
    (found("FormatError: x", "x", "x", ""), 1), (found(serve="x"), 1), (found(info="x"), 1), (found(plan="x"), 1),
    ("the process ended with -6", 1)])
def test_disagreements_are_seen(case, wrong):
    assert len(disagreements(case)) == wrong


@pytest.mark.parametrize(("train", "serve", "wrong"), [(6.0, 6.001, 0), (6.0, 6.2, 1), (6.0, float("nan"), 1)])
def test_other_losses_are_seen(train, serve, wrong):
    case = {**found(), "losses": {"train": train, "serve": serve}}
    assert len(disagreements(case)) == wrong


def test_a_crash_is_seen(tmp_path):
    assert apart(lambda _: os.kill(os.getpid(), signal.SIGKILL), tmp_path) == "the process ended with -9"
    assert apart(lambda path: str(path / "x"), tmp_path) == str(tmp_path / "x")
