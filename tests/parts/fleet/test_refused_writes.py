"""A disk that is full or read-only ends a round's commands in a sentence."""

from pathlib import Path

import pytest
from commands import run
from full_disks import check_full_disks
from json_lines import write_lines

COMMANDS = ("task", "train-round")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_llama):
    """What the commands read."""
    place = tmp_path_factory.mktemp("made")
    write_lines(place / "rows.jsonl", [{"prompt": f"q {number}", "completion": f"a {number}"} for number in range(12)])
    run("fleet", "task", tiny_llama, "-o", place / "task", "--rank", "4", "--least-rows", "1")
    return place


def command_to(name, out, made, model):
    if name == "task":
        return ["fleet", "task", model, "-o", out / "task", "--rank", "4"]
    return ["fleet", "train-round", made / "task", made / "rows.jsonl", "-o", out / "answer", "--model", model,
            "--eval", "none"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_a_sentence_and_the_same_command_works_afterwards(name, made, tiny_llama, tmp_path):
    check_full_disks(command_to(name, tmp_path, made, tiny_llama), tmp_path)


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="needs a folder in which not even root makes files")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_that_cannot_be_written_is_a_sentence(name, made, tiny_llama):
    printed = run(*command_to(name, Path("/sys"), made, tiny_llama), code=1)
    assert printed.splitlines()[-1].startswith("edgetune: ")
    assert "/sys/" in printed.splitlines()[-1]
