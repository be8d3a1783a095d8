"""Reports are well-formed pages that ask for nothing outside, run nothing that rows say, and draw what was measured."""

import json
import math
import os
import re
import shutil
import time
import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner
from durable import go, metrics
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from json_lines import write_lines
from report_pages import assert_drawn, figures, measured, parsed, step, write

from edgetune.adapters.low_rank import LoraFamily
from edgetune.cli import cli
from edgetune.errors import FormatError, Interrupted, NumericsError, UsageError, size_text
from edgetune.runs.chart import element
from edgetune.runs.report import write_report
from edgetune.runs.reported import reported
from edgetune.runs.train import resume, train
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&amp;\x1b[31m\x00\u202e\ud800\n]]>--></style>"


@pytest.fixture
def out(finished, tmp_path):
    """A copy of the folder of a finished run."""
    return shutil.copytree(finished, tmp_path / "out")


def change(folder, **parts):
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, **parts}))


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_charts_draw_what_was_measured(out):
    lines = metrics(out)
    root, _ = parsed(write_report(out))
    found = figures(root)
    steps = [line for line in lines if line["event"] == "step"]
    for title, name in (("Loss", "loss"), ("Learning rate", "lr"), ("Memory", "rss_mib"), ("Speed", "tokens_per_s")):
        assert_drawn(found[title], 0, [(line["step"], line[name]) for line in steps])
    held = [(line["step"], line["loss"]) for line in lines if line["event"] == "eval"]
    assert_drawn(found["Loss"], 1, held)
    kept = json.loads((out / "run.json").read_text())["verdict"]["step"]
    shown = [title.text for title in found["Loss"].iter("title")]
    assert shown == [f"step {kept}: this adapter is kept",
                     *(f"held-out rows, step {number}: {loss:.4g}" for number, loss in held)]
    names = {figure: [text.text for text in group.iter("text") if text.get("class") == "name"]
             for figure, group in found.items()}
    assert names == {"Loss": ["nats a token", "step"], "Learning rate": ["rate of AdamW", "step"],
                     "Memory": ["MiB", "step"], "Speed": ["tokens/s", "step"]}
    assert (out / "metrics.csv").exists()


def test_a_real_run_with_all_that_it_says(out):
    run = json.loads((out / "run.json").read_text())
    pairs = [{"prompt": "lamp on?", "expected": "on", "before": "lamp?", "after": "on"}]
    change(out, answers={"rows": 12, "before": 0.0, "after": 0.75, "pairs": pairs},
           origin={"data": "rows.jsonl", "command": ["edgetune", "train", "my rows.jsonl"],
                   "started": "2026-01-02T03:04:05+00:00", "policy": {"govern": True, "max_temp": 75.0, "nice": 0}},
           start={"path": "an-earlier-adapter", "fingerprint": "f"})
    _, text = parsed(write_report(out))
    held = run["held_out"]
    for said in (f"{held['loss_before']:.3f} → {held['loss_after']:.3f}", run["verdict"]["sentence"], "0% → 75%",
                 "lamp on?", "lamp?", "edgetune train 'my rows.jsonl'", "max-temp 75", "an-earlier-adapter",
                 "started 2026-01-02 03:04", "24 rows, 511 tokens",
                 f"of {size_text(run['plan']['budget_mib'] * 2**20)}", run["isa"], "exact answers"):
        assert said in text, said
    chosen = re.search(r"optionheredefault(.*?)\d+ options at their defaults", text)[1]
    assert chosen.startswith(f"rank4{LoraFamily.rank}dropout0.10lr0.02{TrainConfig.lr}")  # option, here, default
    assert "schedule" not in chosen


def test_memory_beside_the_budget(out):
    change(out, plan={"budget_mib": 100.0, "peak_mib": 90.0, "traded": ["2 of 4 blocks are computed again"]})
    root, text = parsed(write_report(out))
    memory = figures(root)["Memory"]
    assert [line.get("class") for line in memory.find("svg").iter("line")].count("limit") == 1
    assert "budget: 100 MiB" in text
    assert "2 of 4 blocks are computed again" in text
    change(out, plan={"budget_mib": 50_000.0})
    root, text = parsed(write_report(out))
    assert "budget: 50,000 MiB, above this chart" in text
    assert [line.get("class") for line in figures(root)["Memory"].find("svg").iter("line")].count("limit") == 0


def test_the_governors_decisions_are_marked(tmp_path):
    slower = {"event": "governor", "step": 2, "action": "slower", "cause": "it is hot"}
    out = write(tmp_path / "out", step(1), step(2), slower, {**slower, "action": "pause", "cause": "<b>"}, step(3))
    root, text = parsed(write_report(out))
    for title in ("Memory", "Speed"):
        marks = [group for group in figures(root)[title].iter("g") if group.get("class", "").startswith("mark")
                 and group.find("title") is not None]
        assert [mark.find("title").text for mark in marks] == ["step 2: it is hot", "step 2: <b>"]
    assert "2slowerit is hot" in text
    assert "2paused<b>" in text


@pytest.mark.dev
def test_a_training_leaves_its_report(bundle, tmp_path):
    """With answers that were compared after it; also where it is stopped, or its loss is no number."""
    rows = [{"prompt": f"turn on lamp {number}", "completion": "on"} for number in range(40)]
    options = {"rank": 4, "steps": 6, "batch_size": 4, "max_length": 64, "threads": 1}
    result = train(bundle, rows, tmp_path / "out", **options)
    _, text = parsed(tmp_path / "out" / "report.html")
    assert result.verdict in text
    assert f"{result.exact_before:.0%} → {result.exact_after:.0%}" in text
    assert all(pair["prompt"] in text for pair in result.pairs)
    done = []
    with pytest.raises(Interrupted):
        train(bundle, rows, tmp_path / "stopped", **options,
              callbacks=RunCallbacks(done.append, lambda: any(event.get("step") == 3 for event in done)))
    assert "Paused: step 3 of 6." in parsed(tmp_path / "stopped" / "report.html")[1]
    with pytest.raises(NumericsError):
        train(bundle, rows, tmp_path / "failed", **options, lr=1e30, warmup=0.0)
    assert "no longer a number" in parsed(tmp_path / "failed" / "report.html")[1]
    assert (tmp_path / "failed" / "metrics.csv").exists()


@pytest.mark.dev
@pytest.mark.parametrize("report", ["missing", "of a pause"])
def test_a_training_that_was_killed_before_its_report_gets_one(bundle, tmp_path, report):
    """Such a kill leaves a finished adapter, and a report that is older, or none: resume makes what is missing."""
    rows = [{"prompt": f"turn on lamp {i}", "completion": f"lamp {i}"} for i in range(24)]
    options = {"steps": 4, "rank": 4, "max_length": 64, "threads": 1, "anchors": 0}
    out = tmp_path / "out"
    write_lines(tmp_path / "rows.jsonl", rows)
    done = []
    whole = train(bundle, tmp_path / "rows.jsonl", out, callbacks=RunCallbacks(done.append), **options).record
    record = next(event for event in done if event["event"] == "done")
    adapter = (out / "adapter.gguf").read_bytes()
    (out / "metrics.csv").unlink()
    if report == "missing":
        (out / "report.html").unlink()
    (out / "run.json").write_text(json.dumps({name: value for name, value in record.items() if name != "event"}))
    os.utime(out / "run.json", ns=(time.time_ns() + 10**9,) * 2)
    again = resume(out).record
    assert again["answers"] == whole["answers"]
    assert again["verdict"] == whole["verdict"]
    assert (out / "adapter.gguf").read_bytes() == adapter
    assert (out / "metrics.csv").exists()
    assert whole["verdict"]["sentence"] in parsed(out / "report.html")[1]
    with pytest.raises(UsageError, match="is finished"):
        resume(out)


def test_a_training_that_could_not_begin_leaves_no_report(tmp_path):
    out = write(tmp_path / "out", step(1))
    with pytest.raises(UsageError), reported(out):
        raise UsageError("the output folder exists")
    assert not (out / "report.html").exists()


def test_a_run_in_progress(bundle, tmp_path):
    """It is read while it trains, and is none the worse for it."""
    out = tmp_path / "out"
    said = []

    def look(event):
        if event["event"] == "step" and event["step"] == 5:
            said.append(parsed(write_report(out))[1])

    go(bundle, out, callbacks=RunCallbacks(on_event=look))
    assert "Running: step 5 of 8." in said[0]
    assert json.loads((out / "run.json").read_text())["verdict"]["sentence"] in parsed(write_report(out))[1]


@pytest.mark.parametrize("lines", [[], [step(1)], [measured(0, 1.0)], [step(1, loss=math.nan)],
                                   [step(1, loss=math.inf, lr=0.0), step(2, loss=-3.0, lr=0.0)],
                                   [step(n, loss=5.0) for n in (1, 2, 3)], ["{"], [measured(0, math.nan), step(1)]])
def test_runs_of_which_little_is_known(tmp_path, lines):
    parsed(write_report(write(tmp_path / "out", *lines)))


def test_a_long_run_is_a_small_page(tmp_path):
    lines = [line for n in range(1, 5001) for line in (step(n, loss=math.sin(n) + 2), measured(n, 1.5))]
    _, text = parsed(write_report(write(tmp_path / "out", *lines)))
    assert "Of 5,000 steps every 16th is drawn." in text


def test_what_rows_say_is_text(tmp_path):
    pairs = [{"prompt": HOSTILE, "expected": HOSTILE, "before": "x" * 10_000, "after": [{"role": HOSTILE}]},
             HOSTILE, {"prompt": None}]
    out = write(tmp_path / "</title><script>", step(1), {"event": "governor", "step": 1, "action": HOSTILE,
                                                         "cause": HOSTILE},
                status=HOSTILE, base={"name": HOSTILE, "architecture": HOSTILE}, options={HOSTILE: HOSTILE},
                verdict={"kind": HOSTILE, "sentence": HOSTILE}, origin={"command": [HOSTILE], "started": HOSTILE},
                plan={"traded": [HOSTILE], "peak_mib": HOSTILE}, data={"rows": HOSTILE}, changed=[HOSTILE, {}],
                answers={"rows": 1, "pairs": pairs})
    _, text = parsed(write_report(out))
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&amp;\\x1b[31m\\x00" in text
    assert "\x1b" not in text
    assert "(10,000 characters)" in text


@given(st.text())
@examples(80)
def test_any_text_is_well_formed_and_stays_what_it_says(said):
    found = ET.fromstring(element("p", said, title=said))
    plain = "".join(letter for letter in said if letter.isprintable())
    if plain == said:
        assert found.text == (said or None)
        assert found.get("title") == said


def test_a_report_is_replaced_whole_or_not_at_all(out, monkeypatch):
    write_report(out)
    before = (out / "report.html").read_bytes()
    change(out, status="failed", verdict=None)
    monkeypatch.setattr("edgetune.runs.chart.page", lambda *_: "\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_report(out)
    assert (out / "report.html").read_bytes() == before
    assert not list(out.glob("*.tmp"))


def test_no_run_no_report(tmp_path):
    with pytest.raises(FormatError, match="holds no run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- the command ----------------------------------------------------------------------------------------------------


def run_command(*words):
    return CliRunner().invoke(cli, ["report", *map(str, words)])


def test_the_command_for_one_run(out, tmp_path):
    said = run_command(out)
    assert said.exit_code == 0, said.output
    assert f"report in {out / 'report.html'}" in said.output
    assert json.loads((out / "run.json").read_text())["verdict"]["sentence"] in said.output
    parsed(out / "report.html")
    run_command(out, "-o", tmp_path / "other.html")
    assert (tmp_path / "other.html").read_bytes() == (out / "report.html").read_bytes()


def test_the_command_for_several(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(out, tmp_path / "other")
    change(other, options={"lr": 1.0}, held_out={"loss_before": math.nan})
    facts = json.loads(run_command(out, other, "--json").output, parse_constant=pytest.fail)
    assert facts["report"] == "runs.html"
    parsed(tmp_path / "runs.html")
    assert [run["steps"] for run in facts["runs"]] == [8, 8]
    assert "lr" in facts["differing"]
    assert facts["runs"][1]["held_out"]["loss_before"] is None


def test_what_the_command_refuses(out, tmp_path):
    for words, match in (((out, "-o", tmp_path / "model.gguf"), "name one that ends in .html"),
                         ((out, out), "a run is named twice"), ((tmp_path,), "holds no run"),
                         ((out, "-o", tmp_path / "no" / "a.html"), "make the folder")):
        before = sorted(tmp_path.rglob("*"))
        said = run_command(*words)
        assert said.exit_code in (1, 2)
        assert match in said.output
        assert said.output.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
