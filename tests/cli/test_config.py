"""Options of commands from a file: which count, which are refused, and run.toml, which repeats a run to the bit."""

import json
from pathlib import Path

import pytest
from commands import run
from json_lines import write_lines
from tiny import write_place

from edgetune.machine.toml import read_toml, toml_text

ROOT = Path(__file__).parents[2]
ROWS = [{"prompt": f"turn on lamp {i}", "completion": json.dumps({"lamp": i})} for i in range(12)]
SMALL = ["--steps", 2, "--rank", 4, "--threads", 1, "--precision", "exact", "--no-answers"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_place(tmp_path_factory.mktemp("config"), ROWS)


@pytest.fixture(scope="module")
def adapter(place):
    folder = place / "first"
    run("train", place / "model.gguf", place / "rows.jsonl", "-o", folder, "--system", 'Say "on" or \\.', "--eval",
        place / "rows.jsonl", "--min-battery", 30, *SMALL)
    return folder


def config(place, text, name="options.toml"):
    path = place / name
    path.write_text(text)
    return path


@pytest.mark.dev
@pytest.mark.parametrize("name", ["run.toml", "run.json"])
def test_a_run_is_repeated_by_its_own_file(place, adapter, name):
    again = place / f"again-{name}"
    run("train", "--config", adapter / name, "-o", again)
    assert (again / "adapter.gguf").read_bytes() == (adapter / "adapter.gguf").read_bytes()
    records = [json.loads((folder / "run.json").read_text()) for folder in (adapter, again)]
    assert records[0]["options"] == records[1]["options"]
    assert records[0]["origin"]["policy"] == records[1]["origin"]["policy"]
    assert (again / "run.toml").read_text() == (adapter / "run.toml").read_text()


def test_run_toml_has_what_was_asked_and_no_defaults(place, adapter):
    found = read_toml(adapter / "run.toml")
    assert found["model"] == str(place / "model.gguf")
    assert found["eval"] == str(place / "rows.jsonl")
    assert found["system"] == 'Say "on" or \\.'
    assert found["max-length"] == json.loads((adapter / "run.json").read_text())["options"]["max_length"]
    assert "warmup" not in found
    assert "out" not in found


@pytest.mark.dev
def test_run_toml_of_a_run_with_more_epochs_says_so(place, adapter):
    folder = place / "more"
    run("train", "--config", adapter / "run.toml", "-o", folder)
    run("resume", folder, "--epochs", "+1", "--no-answers")
    assert "edgetune resume NEW --epochs +1" in (folder / "run.toml").read_text()


@pytest.mark.dev
def test_the_command_line_wins(place, adapter):
    folder = place / "wins"
    run("train", "--config", adapter / "run.toml", "-o", folder, "--rank", 2)
    options = json.loads((folder / "run.json").read_text())["options"]
    assert options["rank"] == 2
    assert options["steps"] == 2


def test_options_of_a_file_count_as_given(place):
    """The method decides which options there are, and its own defaults give way to the file's."""
    pairs = write_lines(place / "pairs.jsonl", [{"prompt": f"lamp {i}", "chosen": "on", "rejected": "off"}
                                                for i in range(6)])
    file = config(place, f'model = "{place / "model.gguf"}"\ndata = "{pairs}"\nmethod = "dpo"\nbeta = 0.3\n'
                  'lr = 1e-5\nanswers = false\nout = "{0}"\nsteps = 1\n'.replace("{0}", str(place / "pairs")))
    run("train", "--config", file)
    record = json.loads((place / "pairs" / "run.json").read_text())
    assert record["objective"]["beta"] == 0.3
    assert record["options"]["lr"] == 1e-5


def test_lists_are_values_between_commas(place):
    file = config(place, "lr = [1e-4, 2e-4]\n")
    found = run("train", place / "model.gguf", place / "rows.jsonl", "-o", place / "sweep", "--config", file, *SMALL,
                "--json")
    assert [one["options"]["lr"] for one in json.loads(found)["runs"]] == [1e-4, 2e-4]


def test_the_same_file_plans(adapter):
    """Options that a plan does not have, such as those of the policy, are passed over."""
    found = json.loads(run("plan", "--config", adapter / "run.toml", "--no-measure", "--json"))
    assert found["steps"] == 2


@pytest.mark.slow  # as the runs above, of 62 rows
def test_the_example_trains(place, monkeypatch):
    monkeypatch.chdir(ROOT)
    run("train", "--config", "examples/home/train.toml", place / "model.gguf", "-o", place / "home", *SMALL)
    assert read_toml(place / "home" / "run.toml")["data"] == str(ROOT / "examples/home/rows.jsonl")


REFUSED = [
    ("rnak = 4\n", ["options.toml", "rnak", "rank"]),
    ("rank = 0\n", ["options.toml", "rank is 0"]),
    ('rank = "x"\n', ["options.toml", "rank", "x"]),
    ("rank = 2.5\n", ["options.toml", "rank", "2.5"]),
    ("system = true\n", ["options.toml", "system", "True"]),
    ("[train]\nrank = 4\n", ["options.toml", "train"]),
    ("rank 4\n", ["options.toml", "TOML"]),
    ("per-round = 10\n", ["options.toml", "per-round"]),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_a_bad_file_is_refused_by_its_name(place, text, words):
    said = run("train", place / "model.gguf", place / "rows.jsonl", "-o", place / "none", "--config",
               config(place, text), code=1 if "TOML" in words or "train" in words else 2)
    assert all(word in said for word in words), said
    assert not (place / "none").exists()


def test_json_is_taken_too(place):
    file = config(place, json.dumps({"rank": 2, "no_such": 1}), "options.json")
    said = run("train", place / "model.gguf", place / "rows.jsonl", "-o", place / "none", "--config", file, code=2)
    assert "no_such" in said
    assert "none.json" in run("train", "--config", place / "none.json", "-o", place / "none", code=1)


def test_toml_is_read_as_it_was_written(tmp_path):
    values = {"text": 'a "b" \\ \n\t\x7f\x01 ü 😀', "small": 1e-5, "large": 1e22, "whole": 7, "on": True,
              "list": [1, 0.5]}
    path = tmp_path / "file.toml"
    path.write_text(toml_text(values), encoding="utf-8")
    assert read_toml(path) == values
    with pytest.raises(UnicodeEncodeError):
        toml_text({"path": "\udc80"})
