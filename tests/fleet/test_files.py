"""The files of a round: whatever is in them, they open or are refused by an EdgetuneError; and who signed them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from json_lines import write_lines

from edgetune.errors import EdgetuneError, FormatError, MismatchError
from edgetune.fleet.options import FleetOptions
from edgetune.fleet.rounds.answer import Answer, open_answer
from edgetune.fleet.rounds.making import make_task
from edgetune.fleet.rounds.next_task import gathered
from edgetune.fleet.rounds.task import Task, open_task
from edgetune.fleet.rounds.train_round import train_round
from edgetune.fleet.signed_folder import MAX_FACTS
from edgetune.formats import signature
from edgetune.training.config import TrainConfig

CONFIG = TrainConfig(rank=2, lr=1e-2, epochs=1.0, batch_size=4, max_length=64, anchors=0)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
                    max_leaves=6)


@pytest.fixture(scope="module")
def made(bundle, tmp_path_factory):
    """(task, answer, rows) of a small round."""
    folder = tmp_path_factory.mktemp("made")
    rows = write_lines(folder / "rows.jsonl", [{"prompt": f"say {i}", "completion": "aa"} for i in range(8)])
    make_task(bundle, folder / "task", CONFIG, FleetOptions(aggregation="frozen-a"))
    train_round(open_task(folder / "task", bundle), bundle, rows, folder / "answer", "kitchen", threads=1)
    return folder / "task", folder / "answer", rows


def opened(folder, bundle, task=None):
    """What a folder is opened as, with its arrays read; the EdgetuneError where it is refused."""
    found: Task | Answer | EdgetuneError
    try:
        found = open_answer(folder, task) if task else open_task(folder, bundle)
        if isinstance(found, Answer):
            for name in found.start:
                found.pair(name)
    except EdgetuneError as error:
        found = error
    said = str(found) if isinstance(found, EdgetuneError) else "opened as it is"
    assert len(said) > 10
    assert "\n" not in said
    return found


def edited(folder, to, name, change):
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    (to / name).write_text(json.dumps(change(json.loads((to / name).read_text()))))
    return to


@examples(100)
@given(data=st.data(), value=JSON)
@pytest.mark.parametrize("kind", ["task", "answer"])
def test_any_json_in_a_field_opens_or_is_refused(bundle, made, tmp_path, kind, data, value):
    task = open_task(made[0], bundle)
    folder = made[kind == "answer"]
    facts = json.loads((folder / f"{kind}.json").read_text())
    field = data.draw(st.sampled_from([*facts, "more"]))
    inner = facts.get(field)
    if isinstance(inner, dict) and inner and data.draw(st.booleans()):
        key = data.draw(st.sampled_from([*inner]))
        value = {**inner, key: value}
    to = edited(folder, tmp_path / "edited", f"{kind}.json", lambda found: {**found, field: value})
    opened(to, bundle, task if kind == "answer" else None)


@examples(100)
@given(raw=st.binary(max_size=200), begin=st.integers(0, 5000))
@pytest.mark.parametrize("kind", ["task", "answer"])
def test_any_bytes_open_or_are_refused(bundle, made, tmp_path, kind, raw, begin):
    task = open_task(made[0], bundle)
    folder = made[kind == "answer"]
    to = tmp_path / "edited"
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    path = to / f"{kind}.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:begin] + raw + whole[begin + len(raw):])
    opened(to, bundle, task if kind == "answer" else None)


@examples(100)
@given(raw=st.binary(min_size=1, max_size=60), begin=st.integers(0, 3000))
def test_any_update_opens_or_is_refused(bundle, made, tmp_path, raw, begin):
    """With its digest in place, as a liar would have it."""
    task = open_task(made[0], bundle)
    to = tmp_path / "edited"
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(made[1], to)
    path = to / "update.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:begin] + raw + whole[begin + len(raw):])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edited(to, tmp_path / "last", "answer.json", lambda found: {**found, "update": digest})
    opened(tmp_path / "last", bundle, task)


def test_sizes_are_bounded_before_anything_is_read(bundle, made, tmp_path):
    to = shutil.copytree(made[0], tmp_path / "task")
    (to / "task.json").write_bytes(b" " * (MAX_FACTS + 1))
    with pytest.raises(FormatError, match="larger than 1 MiB"):
        open_task(to, bundle)
    answer = shutil.copytree(made[1], tmp_path / "answer")
    with (answer / "update.safetensors").open("r+b") as file:
        file.truncate(1 << 40)  # a sparse file
    with pytest.raises(FormatError, match="the most is"):
        open_answer(answer, open_task(made[0], bundle))


@pytest.mark.parametrize("name", ["task.json", "adapter/adapter.gguf"])
def test_a_pipe_or_folder_in_place_of_a_file_is_refused(bundle, made, tmp_path, name):
    import os
    for make in (os.mkfifo, os.mkdir):
        to = tmp_path / make.__name__
        shutil.copytree(made[0], to)
        (to / name).unlink()
        make(to / name)
        assert isinstance(opened(to, bundle), EdgetuneError)


# ---- signatures ------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """Two private keys, "home" trusted and "other" not; trusted keys are required from when the test says so."""
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization as ser
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    for seed, name in enumerate(("home", "other"), start=1):
        key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        (tmp_path / name).write_bytes(key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption()))
        public = key.public_key().public_bytes(ser.Encoding.OpenSSH, ser.PublicFormat.OpenSSH)
        if name == "home":
            (trusted / "home.pub").write_bytes(public)
    return tmp_path, lambda: monkeypatch.setenv(signature.TRUSTED, str(trusted))


def test_only_what_a_trusted_key_signed_counts(bundle, made, keys, tmp_path):
    folder, trust = keys
    for name in ("home", "other"):
        make_task(bundle, tmp_path / f"task-{name}", CONFIG, FleetOptions(aggregation="frozen-a"), key=folder / name)
    task = open_task(tmp_path / "task-home", bundle)
    for name in ("home", "other"):
        train_round(task, bundle, made[2], tmp_path / f"answer-{name}", "said", threads=1, key=folder / name)
    trust()
    assert isinstance(opened(tmp_path / "task-home", bundle), Task)
    assert isinstance(opened(tmp_path / "task-other", bundle), MismatchError)
    assert "is not signed" in str(opened(made[0], bundle))
    answers, left_out = gathered(task, [tmp_path / "answer-home", tmp_path / "answer-other"])
    public = signature.trusted_keys()
    assert public
    assert [answer.device for answer in answers] == [*public]  # the key names the device, not what it says
    assert [one.device for one in left_out] == ["answer-other"]
    facts = json.loads((tmp_path / "answer-home" / "answer.json").read_text())
    changed = edited(tmp_path / "answer-home", tmp_path / "changed", "answer.json", lambda _: {**facts, "tokens": 999})
    assert "is not the signature" in str(opened(changed, bundle, task))


def test_a_signature_is_checked_also_where_no_key_is_trusted(bundle, keys, tmp_path):
    folder, _ = keys
    make_task(bundle, tmp_path / "task", CONFIG, FleetOptions(aggregation="frozen-a"), key=folder / "other")
    changed = edited(tmp_path / "task", tmp_path / "changed", "task.json", lambda found: {**found, "least_rows": 7})
    with pytest.raises(FormatError, match="is not the signature"):
        open_task(changed, bundle)


def test_the_page_of_files_lists_the_keys(made):
    page = (Path(__file__).parents[2] / "docs" / "reference" / "files.md").read_text("utf-8")
    for folder, name in ((made[0], "task.json"), (made[1], "answer.json")):
        row = next(line for line in page.splitlines() if f"`{name}` |" in line)
        keys = json.loads((folder / name).read_text())
        assert {key for key in keys if f"`{key}`" not in row} == set()
