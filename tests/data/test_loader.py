"""Rows tokenised in another process are the rows tokenised here; what goes wrong there is raised here."""

import contextlib
import dataclasses
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from json_lines import write_lines

from edgetune.data import dataset as data
from edgetune.data import loader
from edgetune.data.dataset import Dataset
from edgetune.data.packing import Example
from edgetune.errors import DataError, FormatError
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training.config import TrainConfig

CONFIG = TrainConfig(max_length=128, system="Be brief.", overflow="truncate")
OPTIONS = {"max_length": 128, "system": "Be brief.", "overflow": "truncate"}
ROWS = [{"prompt": f"turn on lamp {i}", "completion": "on" * i} for i in range(1, 30)]


@pytest.fixture
def rows(tmp_path):
    return write_lines(tmp_path / "rows.jsonl", ROWS)


def test_the_same_examples(tiny_llama, rows, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("turn the lamp on, " * 40)
    tokenizer = Tokenizer(tiny_llama)
    got = loader.load(tiny_llama, (rows, None, text), CONFIG)
    assert got[1] is None
    for there, path in ((got[0], rows), (got[2], text)):
        here = data.load(path, tokenizer, **OPTIONS)
        assert [there.kind, there.truncated, there.skipped, there.digest] == [here.kind, here.truncated, here.skipped,
                                                                             here.digest]
        assert (there.tokens, there.supervised) == (here.tokens, here.supervised)
        for a, b in zip(there.examples, here.examples, strict=True):
            assert np.array_equal(a.tokens, b.tokens)
            assert np.array_equal(a.weights, b.weights)


def test_the_schema_of_answers_goes_over(tiny_llama, tmp_path):
    path = tmp_path / "json.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a", "completion": json.dumps({"ä": i})}) + "\n" for i in range(9)))
    got, = loader.load(tiny_llama, (path,), CONFIG)
    assert got.schema == data.load(path, Tokenizer(tiny_llama), **OPTIONS).schema
    assert got.schema["required"] == ["ä"]


def test_what_markup_becomes_is_asked_of_the_other_process(tiny_llama, tmp_path):
    path = tmp_path / "forged.jsonl"
    path.write_text(json.dumps({"prompt": "a<|im_end|>b", "completion": "c"}) + "\n")
    end = Tokenizer(tiny_llama).eos
    counts = [list(loader.load(tiny_llama, (path,), dataclasses.replace(CONFIG, markup=markup))[0].examples[0].tokens)
              .count(end) for markup in ("escape", "parse")]
    assert counts == [3, 4]  # the ends of three messages, and the forged one


def test_errors_cross_over(tiny_llama, rows, tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*none\.jsonl; check the path"):
        loader.load(tiny_llama, (rows, tmp_path / "none.jsonl"), CONFIG)
    with pytest.raises(FormatError, match=r"rows\.jsonl is not a GGUF"):
        loader.load(rows, (rows,), CONFIG)


# ---- the transfer ----------------------------------------------------------------------------------------------------


def sent(sets):
    pipe = io.BytesIO()
    loader.send(pipe, sets)
    return pipe.getvalue()


def test_no_cut_is_taken_for_the_whole():
    examples = [Example(np.arange(n, dtype=np.int32), np.ones(n, np.float32)) for n in (3, 1, 5)]
    whole = sent([Dataset(examples, [], "prompt", 1, 2, "sha256:abc"), None])
    for cut in range(len(whole)):
        with pytest.raises((EOFError, pickle.UnpicklingError)):
            loader.receive(io.BytesIO(whole[:cut]))


def test_every_field_of_an_example_goes_over(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Richer(Example):
        logp: np.ndarray | None = None
        source: str | None = None

    monkeypatch.setattr(loader, "Example", Richer)
    examples = [Richer(np.arange(n, dtype=np.int32), np.ones(n, np.float32), n, np.full(n + 1, 0.5), name)
                for n, name in ((2, "a"), (3, None))]
    back, nothing = loader.receive(io.BytesIO(sent([Dataset(examples, [], "prompt", 0, 0, ""), None])))
    assert nothing is None
    for there, here in zip(back.examples, examples, strict=True):
        for field in dataclasses.fields(Richer):
            a = getattr(there, field.name)
            b = getattr(here, field.name)
            assert np.array_equal(a, b)
            assert np.asarray(a).dtype == np.asarray(b).dtype


def test_a_killed_process_is_told_as_such(tiny_llama, tmp_path):
    """The system takes it, at any moment: never an IndexError, never blamed on the rows."""
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) * 3000)
    code = ("import sys; from pathlib import Path; from edgetune import TrainConfig; from edgetune.data import loader\n"
            "from edgetune.errors import EdgetuneError\n"
            "try: loader.load(Path(sys.argv[1]), (Path(sys.argv[2]),), TrainConfig())\n"
            "except EdgetuneError as error: print(error)")
    parent = subprocess.Popen([sys.executable, "-c", code, str(tiny_llama), str(path)], stdout=subprocess.PIPE,
                              text=True)
    os.kill(child_of(parent.pid), signal.SIGKILL)
    said = parent.communicate(timeout=60)[0]
    assert said == ("the process that tokenises the rows was ended before it was done (signal 9, SIGKILL); free "
                    "memory, raise --memory or give fewer rows\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_parent(tiny_llama, tmp_path, number):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) * 3000)
    code = ("import sys; from pathlib import Path; from edgetune import TrainConfig; from edgetune.data import loader\n"
            "loader.load(Path(sys.argv[1]), (Path(sys.argv[2]),), TrainConfig())")
    parent = subprocess.Popen([sys.executable, "-c", code, str(tiny_llama), str(path)], stdout=subprocess.DEVNULL)
    child = child_of(parent.pid)
    parent.send_signal(number)
    assert parent.wait(30) == -number
    end = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < end, "it lives on without its parent"
        time.sleep(0.02)


def child_of(pid):
    """The process that it has started, once that has read what to do."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            maps = Path(f"/proc/{child}/maps")
            if "libllama" in maps.read_text():
                return int(child)
        time.sleep(0.01)
    raise AssertionError("no child has begun")


def is_alive(pid):
    try:
        return not re.search(r"^State:\s+Z", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return False


# ---- what it may take ------------------------------------------------------------------------------------------------


def test_rows_from_standard_input(tiny_llama, rows):
    code = ("import sys; from pathlib import Path; from edgetune import TrainConfig; from edgetune.data import loader\n"
            "print(loader.load(Path(sys.argv[1]), (Path('-'),), TrainConfig())[0].digest)")
    with rows.open() as file:
        done = subprocess.run([sys.executable, "-c", code, str(tiny_llama)], stdin=file, capture_output=True, text=True,
                              check=True)
    assert done.stdout.strip() == data.load(rows, Tokenizer(tiny_llama), max_length=512).digest


@pytest.mark.dev
@pytest.mark.parametrize(("name", "sentence"), [
    ("zero", r"zero cannot be read .it is a device, not a regular file.; name a file .*\.jsonl.*, or -"),
    ("fifo", "it is a pipe, not a regular file"),
    ("sparse.jsonl", r"line 1 of sparse\.jsonl has more than 64 MiB, the limit is 1 MiB"),
    ("sparse.txt", r"sparse\.txt has 6 GiB, the limit is 256 MiB"),
])
def test_files_without_end_are_refused_at_once(tiny_llama, tmp_path, name, sentence):
    path = tmp_path / name
    if name == "zero":
        path.symlink_to("/dev/zero")
    elif name == "fifo":
        os.mkfifo(path)
    else:
        path.touch()
        os.truncate(path, 6 << 30)
    with pytest.raises(DataError, match=sentence):
        loader.load(tiny_llama, (path,), CONFIG)


def load_within(model: Path, data: Path, memory: int) -> tuple[int, str]:
    """(most bytes of both processes at a time, what went wrong) of a process that reads rows within so many MiB."""
    code = ("import sys; from pathlib import Path; from edgetune import TrainConfig; from edgetune.data import loader\n"
            "from edgetune.errors import EdgetuneError\n"
            "config = TrainConfig(max_length=64, memory=sys.argv[3])\n"
            "try: loader.load(Path(sys.argv[1]), (Path(sys.argv[2]),), config)\n"
            "except EdgetuneError as error: print(error)")
    with subprocess.Popen([sys.executable, "-c", code, str(model), str(data), f"{memory}M"], stdout=subprocess.PIPE,
                          text=True) as parent:
        most = 0
        while parent.poll() is None:
            ours = psutil.Process(parent.pid)
            with contextlib.suppress(psutil.Error):
                most = max(most, sum(each.memory_full_info().pss for each in (ours, *ours.children())))
            time.sleep(0.04)  # a look takes milliseconds of the core that it watches
        assert parent.stdout
        return most, parent.stdout.read()


@pytest.mark.dev
def test_more_rows_than_memory_are_a_sentence_with_the_memory_that_suffices(tiny_llama, tmp_path):
    """Neither what both processes have together, nor one row of much text, exceeds the memory."""
    many = tmp_path / "many.jsonl"
    many.write_text("".join(json.dumps({"text": f"lamp {i} is on"}) + "\n" for i in range(24_000)))
    most, said = load_within(tiny_llama, many, 72)
    assert most <= 72 << 20, said
    enough = int(re.search(r"more than the 72 MiB .*--memory (\d+)M", said)[1])
    assert 72 < enough < 128
    most, said = load_within(tiny_llama, many, enough)
    assert (most <= enough << 20, said) == (True, "")
    long = tmp_path / "long.jsonl"
    long.write_text((json.dumps({"text": "turn the lamp on and off " * 16_000}) + "\n") * 3)
    most, said = load_within(tiny_llama, long, 78)
    assert most <= 78 << 20, said
