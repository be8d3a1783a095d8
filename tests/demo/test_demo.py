"""The demonstration as a user starts it, on a few of its rows: a real model, for what a newcomer sees first."""

import json
import re

import pytest
from commands import run

from edgetune.demo import run as demo
from edgetune.errors import EdgetuneError
from edgetune.training.callbacks import RunCallbacks


@pytest.fixture
def short(smollm2, tmp_path, monkeypatch):
    """With the 4 shortest rows, a held-out one and a step."""
    for name, count in (("train", 4), ("heldout", 1)):
        lines = sorted((demo.DATA / f"home_{name}.jsonl").read_text().splitlines(keepends=True), key=len)[:count]
        (tmp_path / f"home_{name}.jsonl").write_text("".join(lines))
    monkeypatch.setattr(demo, "DATA", tmp_path)
    monkeypatch.setattr(demo, "OPTIONS", {**demo.OPTIONS, "steps": 1, "batch_size": 1})
    return smollm2


@pytest.mark.dev
@pytest.mark.usefixtures("short")
def test_it_shows_requests_scores_and_how_to_talk_to_it(tmp_path):
    out = tmp_path / "out"
    text = run("demo", "-o", out, "--threads", 1)
    requests = [json.loads(line)["prompt"] for line in (tmp_path / "home_heldout.jsonl").read_text().splitlines()]
    assert sorted(line for line in text.splitlines() if line in requests) == sorted(requests)
    assert text.count("  before  ") == text.count("  after   ") == 1
    head = next(line for line in text.splitlines() if "held-out answers right" in line)
    assert re.search(r"0 of 1 held-out answers right \(0 before\)  loss [\d.]+ -> [\d.]+  \d+:\d\d$", head)
    assert text.endswith(f"talk to it: edgetune chat smollm2 --adapter {out}\n")  # which keeps its system message


@pytest.mark.usefixtures("short")
def test_stopped_it_leaves_nothing(tmp_path):
    with pytest.raises(EdgetuneError, match="the demonstration was stopped after step 0 of 1; start it again"):
        demo.run(tmp_path / "out", callbacks=RunCallbacks(should_stop=lambda: True))
    assert not (tmp_path / "out").exists()
