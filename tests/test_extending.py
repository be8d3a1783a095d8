"""extending.md says beside each recipe how many files the last real change of its kind touched: counted here again."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "development" / "extending.md").read_text("utf-8")
REAL = re.findall(r"`([0-9a-f]{8})`, ([^|]*): (\d+) \|$", PAGE, re.M)
NOT_COUNTED = re.compile(r"^(tests|docs|examples)/|\.md$|^llms\.txt$|^\.ci/|^Makefile$")


def touched(commit):
    """The files of a commit that its kind of change needs: neither tests nor pages. None without the history."""
    done = subprocess.run(["git", "show", "--format=", "--name-only", commit], cwd=ROOT, capture_output=True, text=True)
    return None if done.returncode else [name for name in done.stdout.split() if not NOT_COUNTED.search(name)]


@pytest.mark.parametrize(("commit", "what", "count"), REAL, ids=lambda value: value[:20])
def test_the_last_real_change_touched_so_many_files(commit, what, count):
    files = touched(commit)
    if files is None:
        pytest.skip("the history is not here: this is no whole clone")
    assert len(files) == int(count), what


def test_rows_are_found():
    assert len(REAL) > 10
