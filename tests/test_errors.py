"""What an error quotes cannot steer a terminal or fill it."""

import json
import re
import shutil

import pytest
from commands import run
from tiny import write_tiny

from edgetune.errors import LONGEST, DataError, escaped, size_text
from edgetune.llamacpp.chat_template import fill

STEERING = "\x1b[2J\x1b]0;title\x07\r\n\x9b31m\u202e"


def is_plain(text):
    return text.isprintable() and len(text) <= 2 * LONGEST + 2


def test_what_is_quoted_is_escaped_and_cut():
    error = DataError(f"a key {STEERING} of 10 MB" + "x" * 10**7, "say " + STEERING * 1000)
    assert is_plain(str(error))
    assert str(error).startswith("a key \\x1b[2J\\x1b]0;title\\x07\\r\\n\\x9b31m\\u202e of 10 MBxxx")
    assert str(error) == f"{error.what}; {error.hint}"
    assert len(error.what) == LONGEST
    again = DataError(error.what, error.hint)  # as it comes out of another process
    assert (again.what, again.hint) == (error.what, error.hint)
    assert str(DataError("Ōsaka 🙂 is 'right'", "go on")) == "Ōsaka 🙂 is 'right'; go on"


def test_a_templates_message():
    with pytest.raises(DataError, match="refuses the conversation") as caught:
        fill("{{ raise_exception('" + STEERING.replace("\n", " ") + "' + 'x' * 100000) }}")
    assert is_plain(str(caught.value))


def test_keys_of_rows_on_the_terminal(tmp_path):
    write_tiny(tmp_path / "model.gguf", formats="Q8_0")
    (tmp_path / "rows.jsonl").write_text(json.dumps({STEERING: 1, "x" * 10**6: 2}) + "\n")
    said = run("train", tmp_path / "model.gguf", tmp_path / "rows.jsonl", "-o", tmp_path / "out", code=1)
    assert "unknown shape" in said
    assert is_plain(said.strip())


def test_names_of_foreign_files_on_the_terminal(tmp_path, finished):
    """What a GGUF or run.json says is shown, and obeyed nowhere."""
    write_tiny(tmp_path / "model.gguf", metadata={"general.name": STEERING})
    shutil.copytree(finished, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["base"]["name"] = STEERING
    record["verdict"]["sentence"] = STEERING
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    for command in (["info", tmp_path / "model.gguf"], ["report", tmp_path / "run"], ["info", tmp_path / "run"]):
        said = run(*command)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said)
    assert "\\x1b[2J" in run("report", tmp_path / "run")
    assert "\\x1b[2J" in run("models", "info", tmp_path / "model.gguf")


@pytest.mark.parametrize(("nbytes", "text"), [
    (0, "0 KiB"), (12_800, "12 KiB"), (1.5 * 2**20, "1.5 MiB"), (253.4 * 2**20, "253 MiB"), (1023 * 2**20, "1023 MiB"),
    (2**30, "1 GiB"), (1.25 * 2**30, "1.25 GiB"), (10745 * 2**20, "10.5 GiB"), (17693 * 2**20, "17.3 GiB")])
def test_sizes_are_in_units_that_people_read(nbytes, text):
    assert size_text(nbytes) == text


def test_letters_of_all_scripts_and_families_of_emoji_stay():
    """Joiners are neither printable to Python nor obeyed by terminals."""
    said = "می‌خواهم 👩‍👩‍👧 क्‍ष\tŌ\n"
    assert escaped(said) == said
    assert escaped("\x1b\r\u202e\ud800") == "\\x1b\\r\\u202e\\ud800"
