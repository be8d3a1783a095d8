"""A disk that is full or read-only, and an output that takes no more, end any command in a sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run
from full_disks import check_full_disks, full_disk
from json_lines import write_lines

ROWS = [{"prompt": f"q {number}", "completion": f"a {number}"} for number in range(12)]
TO_OUTPUT = [["--help"], ["--version"], ["train", "--help"], ["models"], ["models", "--json"],
             ["data", "check", "ROWS"], ["info", "nowhere", "--json"]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the commands read."""
    place = tmp_path_factory.mktemp("made")
    write_lines(place / "rows.jsonl", ROWS)
    (place / "mix.json").write_text(json.dumps({"sources": {"own": {"rows": "rows.jsonl"}}}))
    return place


def commands_to(out, made, model):
    return {"compress": ["compress", model, "-o", out / "small.edge", "--type", "Q8_0"],
            "mix": ["mix", made / "mix.json", "-o", out / "mixed.jsonl"],
            "train": ["train", model, made / "rows.jsonl", "-o", out / "adapter", "--eval", "none", "--epochs", "1"]}


NAMES = [name if name != "compress" else pytest.param(name, marks=pytest.mark.slow)  # PyTorch is imported
         for name in commands_to(Path(), Path(), Path())]


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_a_sentence_and_the_same_command_works_afterwards(name, made, tiny_llama, tmp_path):
    if name == "compress":
        pytest.importorskip("torch")
        import edgetune.compress.pipeline  # noqa: F401  # torch wants a folder for temporary files when it is imported
    command = commands_to(tmp_path, made, tiny_llama)[name]
    check_full_disks(command, tmp_path)


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="needs a folder in which not even root makes files")
@pytest.mark.parametrize("name", NAMES)
def test_a_place_that_cannot_be_written_is_a_sentence(name, made, tiny_llama):
    if name == "compress":
        pytest.importorskip("torch")
    printed = run(*commands_to(Path("/sys"), made, tiny_llama)[name], code=1)
    assert printed.splitlines()[-1].startswith("edgetune: ")
    assert "/sys/" in printed.splitlines()[-1]


def started(command, made, output):
    words = [str(made / "rows.jsonl") if word == "ROWS" else word for word in command]
    return subprocess.run([sys.executable, "-m", "edgetune", *words], stdout=output, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


@pytest.mark.dev
@pytest.mark.parametrize("command", TO_OUTPUT, ids=" ".join)
def test_an_output_that_is_full_is_a_sentence(command, made):
    with Path("/dev/full").open("w") as full:
        done = started(command, made, full)
    assert done.returncode == 1
    assert done.stderr == ("edgetune: standard output cannot be written: No space left on device; make room, or name "
                           "another place\n")


@pytest.mark.dev
@pytest.mark.parametrize("command", [["--help"], ["models"], ["models", "--json"]], ids=" ".join)
def test_a_reader_that_has_ended_is_no_error(command, made):
    reader, writer = os.pipe()
    os.close(reader)
    done = started(command, made, writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_journal_of_answers_that_a_full_disk_cut_is_begun_again(tmp_path):
    from edgetune.errors import DiskError
    from edgetune.evaluation.collected import Sample, collect
    from edgetune.evaluation.graders.base import read_grader
    equal = read_grader({"type": "string_check", "name": "equal", "operation": "eq",
                         "input": "{{ sample.output_text }}", "reference": "{{ item.completion }}"})
    arguments = ([{"prompt": "q", "completion": "a"}], lambda *_: Sample("a"), equal, tmp_path / "answers.jsonl")
    with full_disk(5), pytest.raises(DiskError, match="cannot write"):
        collect(*arguments)
    (tmp_path / "answers.jsonl.part").write_text('{"dig')  # as earlier versions left it
    with full_disk(100), pytest.raises(DiskError, match="cannot write"):
        collect(*arguments)
    collect(*arguments)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1
