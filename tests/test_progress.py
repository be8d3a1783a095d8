"""How long work goes, as a person sees it in 60 and 80 columns, and as a program reads it."""

import io
import json
import re

import pyte
import pytest
from click.testing import CliRunner
from rich.console import Console
from tiny import write_tiny

from edgetune.cli import cli
from edgetune.console import pair_lines, say
from edgetune.progress import JsonProgress, Outlook, StepProgress, TrainProgress

MIB = 2**20
START = {"event": "start", "steps": 12000, "done": 0, "rows": 90000, "tokens": 9900000, "supervised": 900000,
         "isa": "avx512vnni", "disk": {"checkpoint_every": "5m", "checkpoint_seconds": 300.0, "checkpoint_bytes": MIB,
                                       "bytes_per_day": 99 * MIB},
         "plan": {"peak_bytes": 999 * MIB, "budget_bytes": 1999 * MIB, "budget": "75% of what is available",
                  "arena_bytes": MIB, "weight_bytes": MIB, "process_bytes": MIB, "traded": []}}
STEP = {"event": "step", "step": 1100, "tokens": 44000, "seconds": 9.0, "loss": 11.25, "rss_mib": 1234.0}
PAUSE = {"event": "governor", "step": 1100, "threads": 1, "action": "pause",
         "cause": "the zone soc-thermal is at 86 °C, the limit is 85 °C, and it cools down slowly"}


def shown(text, columns):
    """The lines of a terminal to which this was written."""
    terminal = pyte.Screen(columns, 24)
    pyte.Stream(terminal).feed(text.replace("\n", "\r\n"))
    return [line.rstrip() for line in terminal.display if line.strip()]


def screen(events, columns):
    """What a terminal shows after these events, while the run goes."""
    file = io.StringIO()
    with TrainProgress(Console(file=file, force_terminal=True, width=columns)) as progress:
        for event in events:
            progress.event(event)
        for live in (progress.live, progress.drawing and progress.drawing.live):
            if live:
                live.refresh()
        return shown(file.getvalue(), columns)


@pytest.mark.parametrize("columns", [60, 80])
def test_step_time_left_and_cause_are_always_visible(columns):
    events = [START, {"event": "eval", "step": 1000, "loss": 12.345}, STEP]
    *_, place, numbers = screen(events, columns)
    assert place.startswith("step 1100/12000  ")
    assert place.endswith("  27:15:00 left")
    assert numbers == "loss 11.250  held-out 12.345  4889 tokens/s  1.21 GiB"
    lines = screen([*events, PAUSE], columns)
    at = lines.index(place)
    assert lines[at + 1] == numbers
    assert " ".join(lines[at + 2:]) == f"paused: {PAUSE['cause']}"
    lines = screen([*events, PAUSE, PAUSE | {"action": "go", "cause": "it is cool"}], columns)
    assert lines[-2:] == [place, numbers]
    over = f"step 1100/12000  for 0:00 paused: {PAUSE['cause']}"
    assert over in " ".join(lines)
    lines = screen([*events, PAUSE, {"event": "done"}], columns)
    assert lines[-2:] == [place, numbers]
    assert over in " ".join(lines)


def test_what_the_base_answers_first_is_told():
    events = [{"event": "anchors", "done": 0, "of": 128}, {"event": "anchors", "done": 64, "of": 128}]
    first, second, last = screen(events, 60)
    assert f"{first} {second}".startswith("the base answers 128 questions first")
    assert second.endswith("--anchors 0: never)")
    assert last.startswith("answering ")
    assert " 50 %" in last
    begun = screen([*events, START, STEP], 80)
    assert any(line.startswith("answering ") and " 100 %" in line for line in begun)
    missing = {"event": "anchors_missing", "reason": "this does not fit: it needs 161 MiB"}
    told = screen([missing], 100)[0]
    assert told.endswith(": this does not fit: it needs 161 MiB")
    *_, stopped, said = screen([events[0], missing], 100)
    assert (" 0 %" in stopped, said) == (True, told)


def test_parts_of_the_rows_that_test_it_are_told():
    events = [{"event": "folds", "part": part, "parts": 4} for part in (1, 2, 3)]
    *said, last = screen([*events], 80)
    told = "all rows are learned; now 4 parts of them are answered by trainings on the others"
    assert " ".join(said).startswith(told)
    assert last.startswith("testing ")
    assert " 50 %" in last
    *_, stopped, why = screen([events[0], {"event": "answers_missing", "reason": "the adapter was not tested"}], 100)
    assert (" 0 %" in stopped, why.endswith("the adapter was not tested")) == (True, True)


def test_without_a_terminal_it_is_told_in_lines():
    file = io.StringIO()
    with TrainProgress(Console(file=file, width=200)) as progress:
        progress.event({"event": "anchors", "done": 64, "of": 128})  # the first 64 were kept
    told, answering = file.getvalue().splitlines()
    assert told.startswith("the base answers 128 questions first")
    assert answering.startswith("answering  50%  ")


@pytest.mark.parametrize(("seconds", "every", "said"), [(0.001, "5m", False), (9.0, "5m", True), (9.0, "never", False)])
def test_wear_is_said_where_a_checkpoint_is_due(seconds, every, said):
    disk = START["disk"] | {"checkpoint_every": every, "checkpoint_seconds": 300.0 if every == "5m" else None}
    lines = screen([START | {"disk": disk}, STEP | {"seconds": seconds}, STEP | {"step": 1101, "seconds": seconds}], 80)
    assert [line for line in lines if "checkpoint" in line] == [
        "a checkpoint every 5m: 1 MiB each, about 327 MiB in this run"][:said]  # 10,901 steps of 9 s


def test_the_last_measurement_stays():
    events = [START, {"event": "eval", "step": 11999, "loss": 3.5}, STEP | {"step": 12000}]
    assert "held-out" not in screen(events, 80)[-1]  # it is measured again
    assert "held-out 0.250" in screen([*events, {"event": "eval", "step": 12000, "loss": 0.25}], 80)[-1]


def test_memory_is_said_of_training_and_of_answers():
    line = next(line for line in screen([START | {"answers_bytes": 320 * MIB}], 100) if line.startswith("memory"))
    sizes = re.findall(r"[\d.]+ [KMG]iB", line)
    assert sizes == ["999 MiB", "320 MiB", "1.95 GiB"]
    assert re.findall(r"[\d.]+ [KMG]iB", " ".join(screen([START], 100))) == [sizes[0], sizes[2]]


def test_events_of_training_are_json_lines_on_stderr(tmp_path):
    write_tiny(tmp_path / "model.gguf")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "on", "completion": "off"}\n' * 8)
    args = ["train", tmp_path / "model.gguf", tmp_path / "rows.jsonl", "-o", tmp_path / "out", "--steps", 3, "--eval",
            "none", "--batch-size", 2, "--threads", 1, "--json"]
    done = CliRunner().invoke(cli, list(map(str, args)))
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["steps"] == 3
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert next(event for event in events if event["event"] == "start")["steps"] == 3
    steps = [event for event in events if event["event"] == "step"]
    assert (steps[0]["step"], steps[-1]["step"], steps[-1]["steps"], steps[-1]["left_s"]) == (1, 3, 3, 0.0)


def test_long_steps_are_json_lines():
    file = io.StringIO()
    with JsonProgress(file) as progress:
        for done in range(1001):
            progress.step("measuring", done, 1000)
        progress.step("writing", 0, 1)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [(line["what"], line["done"]) for line in lines] == [("measuring", 0), ("measuring", 1000), ("writing", 0)]
    assert lines[1]["left_s"] == 0


@pytest.mark.parametrize("columns", [60, 80])
def test_a_long_step_fits(columns):
    file = io.StringIO()
    with StepProgress(Console(file=file, force_terminal=True, width=columns)) as progress:
        progress.step("what each matrix costs in each format", 3, 10)
    line = shown(file.getvalue(), columns)[0]
    assert line.startswith("what each matrix costs in each format ━")
    assert "100 %" in line


STEPS = [("importance", 40.0), ("quantizing", 20.0), ("measuring", 10.0)]


def test_what_is_left_of_all_steps_follows_what_they_took():
    outlook = Outlook(STEPS)
    assert outlook.left(None) == outlook.seconds == 70
    outlook.begin("reading", 9.0)  # that nobody has estimated
    outlook.begin("importance", 0.0)
    assert outlook.left(None) == 70
    assert outlook.left(25.0) == 55
    outlook.begin("quantizing", 80.0)  # twice as long as was thought
    assert outlook.left(None) == 60
    outlook.begin("measuring", 40.0)
    assert outlook.left(2.0) == 2


def test_the_last_line_says_how_much_longer_all_steps_take():
    file = io.StringIO()
    with StepProgress(Console(file=file, force_terminal=True, width=60)) as progress:
        progress.expect(STEPS)
        progress.step("quantizing", 0, 4)
        progress.live.refresh()
        first, second = shown(file.getvalue(), 60)
    assert first.startswith("quantizing ━")
    assert second == "step 2/3, about 0:30 left in all"


def test_an_estimate_is_a_json_line():
    file = io.StringIO()
    with JsonProgress(file) as progress:
        progress.expect(STEPS)
        progress.step("importance", 0, 4)
    estimate, line = map(json.loads, file.getvalue().splitlines())
    assert (estimate["event"], estimate["seconds"], estimate["steps"][0]) == (
        "estimate", 70.0, {"what": "importance", "seconds": 40.0})
    assert line["all_left_s"] == 70.0


def test_an_id_is_no_emoji():
    """A model may be called llama, and an adapter of it ft:llama::1a2b3c4d."""
    file = io.StringIO()
    say(Console(file=file), "ft:llama::1a2b3c4d [bold]is active[/bold]")
    assert file.getvalue() == "ft:llama::1a2b3c4d [bold]is active[/bold]\n"


def test_answers_are_wrapped_beside_their_names():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, color_system=None)
    pairs = [{"prompt": "which?", "before": "x" * 200, "after": "so many words " * 8 + "y" * 70, "right": False}]
    for line in pair_lines(pairs, console):
        say(console, line)
    lines = file.getvalue().rstrip().split("\n")[1:]
    assert lines[:2] == ["which?", "  before  " + "x" * 49 + "…"]
    assert lines[2].rstrip() == "  after   so many words so many words so many words so many"
    assert all(line.startswith(" " * 10) and len(line) <= 60 for line in lines[3:])
    assert "".join(line[10:] for line in lines[2:]).replace(" ", "") == "somanywords" * 8 + "y" * 70


def test_the_last_step_is_not_shown_with_a_measurement_before_it():
    """Once it is measured again, that has a line of its own."""
    file = io.StringIO()
    with TrainProgress(Console(file=file, width=200)) as progress:
        for event in (START, {"event": "eval", "step": 0, "loss": 12.345}, STEP | {"step": 12000},
                      {"event": "eval", "step": 12000, "loss": 0.072}):
            progress.event(event)
    lines = [line for line in file.getvalue().splitlines() if line.startswith("step 12000/12000")]
    assert len(lines) == 2
    assert "held-out" not in lines[0]
    assert lines[1].endswith("held-out 0.072")
