"""Small files that a command names: a pipe does not block it, and a device without an end does not fill the memory."""

import os

import pytest
from bounds import bounded_memory
from click.testing import CliRunner
from tiny import write_tiny

from edgetune.cli import cli
from edgetune.disk import MIB, read_small
from edgetune.errors import UsageError
from edgetune.formats.signature import private_key

pytestmark = pytest.mark.timeout(60)  # for a pipe that is waited for
ADDRESSES = 1 << 30  # bytes that a command may take: reading /dev/zero to its end runs into this, and says so
KINDS = ["pipe", "device", "large"]
COMMANDS = {
    "policy": ["train", "{model}", "{rows}", "-o", "{out}", "--policy", "{file}"],
    "training's grader": ["train", "{model}", "{rows}", "-o", "{out}", "--method", "grpo", "--grader", "{file}"],
    "grader": ["grade", "{file}", "{rows}"],
    "texts to keep": ["lab", "tutor", "run", "{model}", "{prompts}", "--labelled", "{rows}", "-o", "{out}",
                      "--keep", "{file}"],
    "speed": ["plan", "{model}", "--speed", "{file}"],
    "schema": ["models", "info", "{adapter}"],
    "key": ["status", "--url", "http://127.0.0.1:9", "--key-file", "{file}"],
}


@pytest.fixture(scope="module")
def place(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "turn on lamp {i}", "completion": "on"}}\n' for i in range(60)))
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "turn off lamp {i}"}}\n' for i in range(60)))
    model = write_tiny(folder / "model.gguf", formats="Q8_0")
    return {"model": model, "rows": rows, "prompts": prompts, "finished": finished}


def special(path, kind):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 6 << 30)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "schema"])
def test_a_named_file_without_end(place, tmp_path, name, kind):
    if (name, kind) == ("texts to keep", "large"):
        pytest.skip("rows of any number are read one at a time")
    file = special(tmp_path / "named", kind)
    refused(COMMANDS[name], {**place, "file": file, "out": tmp_path / "out"})


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapters_schema_without_end(place, tmp_path, kind):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter.gguf", "run.json"):
        (adapter / name).write_bytes((place["finished"] / name).read_bytes())
    special(adapter / "schema.json", kind)
    refused(COMMANDS["schema"], {**place, "adapter": adapter})


def refused(command, names, says=("it is a pipe", "it is a device", "larger than", "no measured speed")):
    """The command ends in a sentence that names the file and the limit."""
    words = [word.format(**names) for word in command]
    with bounded_memory(ADDRESSES):
        done = CliRunner().invoke(cli, words)
    assert done.exit_code in (1, 2), done.output
    assert done.stderr.count("\n") == 1, done.stderr
    assert any(what in done.stderr for what in says)


def test_a_busy_file_that_is_no_file(place, tmp_path):
    for kind in ("pipe", "device"):
        file = special(tmp_path / kind, kind)
        for command in (["train", "{model}", "{rows}", "-o", "{out}", "--busy-file", "{file}"],
                        ["generate", "{model}", "on?", "--max-tokens", "2", "--busy-file", "{file}"]):
            refused(command, {**place, "file": file, "out": tmp_path / "out"}, ["regular file"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_to_sign_with(tmp_path, kind):
    pytest.importorskip("cryptography")
    with pytest.raises(UsageError, match=r"it is a pipe|it is a device|larger than"):
        private_key(special(tmp_path / "key", kind))


def test_the_limit_counts_what_is_read(tmp_path):
    """A file of /proc says that it has no bytes."""
    assert b"VmRSS" in read_small("/proc/self/status")
    exact = tmp_path / "exact"
    exact.write_bytes(bytes(MIB))
    assert len(read_small(exact)) == MIB
    exact.write_bytes(bytes(MIB + 1))
    with pytest.raises(OSError, match="larger than 1 MiB"):
        read_small(exact)
