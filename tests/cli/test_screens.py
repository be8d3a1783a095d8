"""What a person sees, in 80 columns, as files in screens/. `WRITE_SCREENS=1 pytest cli/test_screens.py` writes them."""

import json
import os
import re
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from commands import run
from recorded import recording
from tiny import write_tiny

from edgetune.cli.app import show
from edgetune.cli.compare import compared_lines
from edgetune.cli.facts import doctor_lines
from edgetune.cli.learn import demo_lines, result_lines, try_lines
from edgetune.cli.remote import _method_in_short
from edgetune.cli.status import short_names, view
from edgetune.evaluation.compare import compare
from edgetune.evaluation.served import GradedAnswer, Grades, Loss, Scores
from edgetune.runs.result import Result
from edgetune.training.config import train_options

SCREENS = Path(__file__).parent / "screens"
MIB = 2**20
PAIRS = [{"prompt": "turn on the lamp in the hall", "expected": '{"lamp":"on"}', "before": "The light is on. " * 9,
          "after": '{"lamp":"on"}', "right": True},
         {"prompt": "no more light", "expected": '{"lamp":"off"}', "before": "I can help.", "after": '{"lamp":"on"}',
          "right": False}]


def result(kind="learned", sentence="Learned: the held-out loss fell.", **changed):
    return Result(Path("lamps"), {
        "verdict": {"kind": kind, "sentence": sentence, "step": 9}, "steps": 9, "seconds": 75.0, "peak_rss_mib": 1100.0,
        "measure": "loss", "held_out": {"loss_before": 3.2925, "loss_after": 0.0723}, "options": {"family": "lora"},
        "answers": {"rows": 4, "before": 0.25, "after": 0.75, "structured": 1.0, "pairs": PAIRS}, **changed})


def graded(rights, losses):
    answers = [GradedAnswer("", "on", "on" if right else "off", right, True, f"lamp {i}")
               for i, right in enumerate(rights)]
    scores = Scores("llama.cpp", len(rights), 20, sum(losses) / len(losses), sum(rights) / len(rights), len(rights))
    return Grades(scores, [Loss(2 * loss, 2.0, 2) for loss in losses], answers)


def demo(_folder):
    show(False, {}, *demo_lines(result(), 100.0))


def train(_folder):
    show(False, {}, *result_lines(result()), *try_lines(result(), Path("model.gguf"), Path("lamps")))


def untested(_folder):
    found = result("unmeasured", "Trained. Not tested: no rows were held out.", held_out=None, answers=None)
    show(False, {}, *result_lines(found), *try_lines(found, Path("model.gguf"), Path("lamps")))


def comparison(_folder):
    both = [graded([False] * 9 + [True], [2.0] * 10), graded([True] * 8 + [False] * 2, [0.5] * 10)]
    show(False, {}, *compared_lines("rows.jsonl by llama.cpp", [None, Path("lamps")], both, compare(*both)))


def check(folder):
    rows = [{"prompt": f"turn on lamp {i}", "completion": f"lamp {i}"} for i in range(30)]
    lines = [json.dumps(row) for row in [*rows, rows[0], {"prompt": "dark", "completion": ""}, {"question": 1}]]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    run("data", "check", folder / "rows.jsonl", code=1)


def plan(folder):
    write_tiny(folder / "model.gguf")
    (folder / "rows.jsonl").write_text('{"prompt": "on", "completion": "off"}\n' * 40)
    run("plan", folder / "model.gguf", folder / "rows.jsonl", "--device", "Raspberry Pi 5", "--eval", "none")


ADAPTERS = [{"id": f"ft:smollm2-135m-instruct:{suffix}:{number}", "name": name, "verdict": {}}
            for suffix, number, name in (("lamps", "1ad45f3c", ""), ("lamps", "9b2e0c11", ""),
                                         ("doors", "77aa01b2", ""), ("", "5555aaaa", ""),
                                         ("heat", "01020304", "winter"))]
CAUSE = "8 of 8 held-out questions are right, 0 before; unrelated text is as it was, and so is all that was learned"


def facts(now):
    return {"model": "smollm2-135m-instruct", "health": {"status": "ok", "reasons": []}, "job": None,
            "temperature": 51.5, "memory": {"used": 383 * MIB, "budget": 17 << 30, "available": 22 << 30},
            "serving": {"working": 0, "waiting": 0, "requests": 12, "tokens_per_s": 40.8},
            "answered": {"model": 12, "encoder": 30},
            "learning": {"state": "learns when it is told to", "unused": ""},
            "adapters": {"data": ADAPTERS, "serving": ADAPTERS[2]["id"], "history": [
                {"at": now, "adapter": ADAPTERS[2]["id"], "cause": f"ftjob-12ab: {CAUSE}"},
                {"at": now - 3 * 86400, "adapter": None, "cause": "rolled back"}]},
            "governor": [{"at": now, "action": "pause", "cause": CAUSE}]}


def status(_folder):
    show(False, {}, view(facts(datetime(2026, 1, 2, 6, 5).timestamp())))


def doctor(_folder):
    show(False, {}, *doctor_lines({
        "edgetune": "0.1.0", "machine": "aarch64", "board": "Raspberry Pi 5", "cores": 4, "memory_total": 8052 * MIB,
        "memory_available": 7000 * MIB, "cpu_features": ["neon", "dotprod"], "kernels": "dotprod", "missing": [],
        "ready": True, "verdict": "Ready: trains with the kernels dotprod on 4 cores in 6.84 GiB of free memory."}))


DRAWN = [demo, train, untested, comparison, check, plan, status, doctor]


def drawn(draw, folder, columns=80):
    """The text of a screen; of a plan without its numbers, and in lines that are not broken."""
    with recording(1000 if draw is plan else columns) as terminal:
        draw(folder)
        text = re.sub(r" +$", "", terminal.export_text(), flags=re.M)
    return re.sub(r"\d+(\.\d+)?", "0", text) if draw is plan else text


@pytest.mark.parametrize("draw", DRAWN, ids=lambda draw: draw.__name__)
def test_the_screen_is_as_it_was(draw, tmp_path):
    file = SCREENS / f"{draw.__name__}.txt"
    shown = drawn(draw, tmp_path)
    if "WRITE_SCREENS" in os.environ:
        file.write_text(shown)
    assert shown == file.read_text()


@pytest.mark.parametrize(("draw", "columns"), [(draw, columns) for draw in DRAWN if draw is not plan
                                               for columns in (60, 80)])
def test_a_screen_fits(draw, columns, tmp_path):
    lines = drawn(draw, tmp_path, columns).splitlines()
    assert [line for line in lines if len(line) > columns and "edgetune chat" not in line] == []  # is to be copied


@pytest.mark.parametrize(("kind", "style"), [("learned", "green"), ("overfitted", "yellow"), ("worse", "red")])
def test_the_verdict_of_a_run_is_the_first_line_in_colour(kind, style):
    head = result_lines(result(kind))[0]
    assert str(head.spans[0].style) == f"bold {style}"
    for number in ("3 of 4", "1 before", "3.29 -> 0.072", "1:15"):
        assert number in head.plain
    assert len(head.plain) <= 80 or kind == "overfitted"


def test_a_rewarded_run_has_its_rewards_in_the_headline():
    found = result(answers=None, measure="reward", held_out={"loss_before": -0.25, "loss_after": -0.5})
    assert "reward 0.25 -> 0.5" in found.headline


def test_adapters_have_short_names():
    assert list(short_names(ADAPTERS).values()) == ["lamps 1ad45f3c", "lamps 9b2e0c11", "doors", "5555aaaa", "winter"]


@pytest.mark.parametrize("columns", [60, 80])
def test_an_event_of_status_is_a_line_with_its_time(columns):
    now = time.time()
    with recording(columns) as terminal:
        show(False, {}, view(facts(now)))
        lines = terminal.export_text().splitlines()
    at = datetime.fromtimestamp(now)
    earlier = at - timedelta(days=3)
    events = [line.split() for line in lines if re.match(r" *(\d\d-\d\d )?\d\d:\d\d  ", line)]
    assert [event[:3] for event in events] == [
        [f"{at:%H:%M}", "doors", "8"], [f"{earlier:%m-%d}", f"{earlier:%H:%M}", "the"], [f"{at:%H:%M}", "paused", "8"]]


def test_a_shown_job_has_the_options_that_differ():
    every = {spec.name: spec.default for spec in train_options().values()}
    method = {"type": "supervised", "supervised": {"hyperparameters": {**every, "rank": 4, "n_epochs": 3}}}
    assert _method_in_short(method) == {"name": "supervised", "rank": 4}
    method = {"type": "dpo", "dpo": {"hyperparameters": {"lr": 2e-4, "beta": 0.2}}}
    assert _method_in_short(method) == {"name": "dpo", "beta": 0.2}
