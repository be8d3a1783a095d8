"""lab/kills.py finds what a kill can leave, and nothing in what writes as it should."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRIALS = """
import json, os, random, sys
from pathlib import Path
from lab.kills import Trial
from lab.written import Action
from edgetune.disk import replaced

OUT = Path("out")

def begin():
    OUT.write_text("old")

def in_place():
    with OUT.open("w") as file:
        file.write("ne")
        file.flush()
        Path("other").write_text("x")
        file.write("w")

def left():
    beside = Path(f"out.{os.getpid()}")
    beside.write_text("new")
    Path("other").write_text("x")
    beside.replace(OUT)

def refused():
    if Path("other").exists():
        raise ValueError("it has begun already")
    Path("other").write_text("x")
    OUT.write_text("new")

def whole():
    with replaced(OUT) as beside:
        beside.write_text("new")
    Path("other").write_text("x")

for run in (in_place, left, refused, whole):
    met = Trial(Path(sys.argv[1]) / run.__name__, run.__name__, Action(begin, run)).prove(random.Random(0), 12)
    print(json.dumps([met.kills, " ".join(met.wrong)]))
"""


@pytest.mark.dev
def test_what_a_kill_can_leave_is_found(tmp_path):
    done = subprocess.run([sys.executable, "-c", TRIALS, tmp_path], capture_output=True, text=True,
                          cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(kills >= 12 for kills, _ in found)
    in_place, left, refused, whole = (wrong for _, wrong in found)
    assert "after a kill out is neither old nor new: other bytes in out" in in_place
    assert "the same again leaves another folder: with out." in left
    assert "it has begun already" in refused
    assert whole == ""
