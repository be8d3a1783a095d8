"""Held-out loss by our own engine within a budget, measured in a process of its own."""

import json
import re
import subprocess
import sys

import pytest

CODE = """
import atexit, sys
from edgetune.machine.device import peak_rss
atexit.register(lambda: print(f"peak {peak_rss()}", file=sys.stderr))
from edgetune.cli import main
main()
"""


def evaluate(model, rows, memory):
    command = [sys.executable, "-c", CODE, "eval", model, rows, "--engine", "native", "--no-answers",
               "--memory", memory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout, done.stderr


@pytest.mark.dev
def test_the_loss_is_within_the_budget_that_a_refusal_names(smollm2, tmp_path):
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": "Write a story about a lamp. " * 10, "completion": "once upon a time " * 20}
    rows.write_text(f"{json.dumps(row)}\n" * 2)
    _, refused = evaluate(smollm2, rows, "20M")
    least = re.search(r"give it --memory (\d+)M", refused)
    assert least
    said, measured = evaluate(smollm2, rows, f"{least[1]}M")
    peak = re.search(r"peak (\d+)", measured)
    assert peak
    assert int(peak[1]) <= int(least[1]) << 20
    plenty, _ = evaluate(smollm2, rows, "2G")
    losses = [float(re.search(r"loss +(\d+\.\d+)", text)[1]) for text in (said, plenty)]
    assert losses[0] == losses[1]
