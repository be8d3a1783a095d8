"""The JSON of commands and of a run's folder has the keys that docs/reference/files.md lists."""

import json
import re
from pathlib import Path

import pytest
from commands import run
from json_lines import write_lines
from tiny import write_tiny

from edgetune import RunCallbacks, train

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "files.md").read_text("utf-8")
GRADER = {"type": "string_check", "name": "same", "operation": "eq", "input": "{{ sample.output_text }}",
          "reference": "{{ item.completion }}"}
COMMANDS = {
    "eval": "model.gguf rows.jsonl --adapter out", "plan": "model.gguf rows.jsonl --no-measure",
    "data check": "rows.jsonl model.gguf", "compare": "model.gguf rows.jsonl --adapter out",
    "grade": "grader.json rows.jsonl", "generate": "model.gguf lamp --max-tokens 2", "info": "model.gguf",
    "mix": "mix.json -o mixed.jsonl", "data make log": "log.jsonl -o made.jsonl",
    "device": "", "models": "", "report": "out", "merge": "model.gguf out -o merged.gguf"}


def listed(section):
    """{first cell: the names in the second} of a table of the page."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return {name: re.findall(r"`([a-z_]+)`", keys)
            for names, keys in re.findall(r"^\| (`.*?`) \| (.*?) \|", text, re.M)
            for name in re.findall(r"`(.*?)`", names)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, rows, and an adapter of two steps with the events of its run."""
    folder = tmp_path_factory.mktemp("files")
    write_tiny(folder / "model.gguf", formats="Q8_0", n_blocks=1, d_model=32, d_ff=64)
    write_lines(folder / "rows.jsonl", [{"prompt": f"lamp {state}", "completion": f'{{"lamp":"{state}"}}'}
                                        for state in ("on", "off", "up", "down", "dim", "red")])
    (folder / "grader.json").write_text(json.dumps(GRADER))
    (folder / "mix.json").write_text(json.dumps({"sources": {"lamps": {"rows": "rows.jsonl"}}}))
    write_lines(folder / "log.jsonl", [{"prompt": "a", "completion": "b", "confirmed": True}])
    events = []
    train(folder / "model.gguf", folder / "rows.jsonl", folder / "out", steps=2,
          callbacks=RunCallbacks(on_event=events.append))
    (folder / "events.json").write_text(json.dumps(events))
    return folder


def test_keys_of_the_record(folder):
    found = json.loads((folder / "out" / "run.json").read_text())
    assert {key for key in listed("run.json") if key.islower()} == set(found)


def test_files_of_a_run(folder):
    named = set(listed("The folder of a run"))
    assert {path.name for path in (folder / "out").iterdir()} <= named | {"metrics.csv"}


def test_events(folder):
    lines = listed("metrics.jsonl")
    events = json.loads((folder / "events.json").read_text())
    for event in events:
        if event["event"] in lines:
            assert set(lines[event["event"]]) <= set(event)
    others = re.findall(r"`(\w+)`", PAGE.partition("`on_event` and stderr: ")[2][:400])
    assert {event["event"] for event in events} <= {*lines, *others}


@pytest.mark.parametrize("command", COMMANDS)
def test_keys_of_a_command(folder, command, monkeypatch):
    monkeypatch.chdir(folder)
    found = json.loads(run(*command.split(), *COMMANDS[command].split(), "--json"))
    assert set(listed("--json")[command]) <= set(found)
