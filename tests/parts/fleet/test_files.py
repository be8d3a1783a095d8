"""The files of a round: whatever is in them, they open or are refused by an EdgetuneError; and who signed them."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import pkgutil
import re
import shutil
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import get_origin, get_type_hints

import pytest
from examples import examples
from fleets import write_fleet
from hypothesis import given
from hypothesis import strategies as st
from json_lines import write_lines
from pydantic import TypeAdapter, ValidationError

import edgetune.parts.fleet
from edgetune.errors import EdgetuneError, FormatError, MismatchError
from edgetune.formats import signature
from edgetune.formats.slot import SIDES, Slot
from edgetune.parts.fleet.bases.slot import (
    STARTED,
    BaseOrigin,
    Trial,
    read_origin,
    read_trial,
    write_origin,
    write_trial,
)
from edgetune.parts.fleet.membership import invites, members
from edgetune.parts.fleet.rollout import rings
from edgetune.parts.fleet.rollout.artifact import read_artifact
from edgetune.parts.fleet.rollout.folder import newest_order
from edgetune.parts.fleet.rollout.reports import read_device
from edgetune.parts.fleet.rounds.answer import RoundAnswer, open_answer
from edgetune.parts.fleet.rounds.lead import gathered, make_task
from edgetune.parts.fleet.rounds.member import train_round
from edgetune.parts.fleet.rounds.options import RoundOptions
from edgetune.parts.fleet.rounds.task import RoundTask, open_task, read_outcome
from edgetune.parts.fleet.signed_folder import MAX_FACTS
from edgetune.parts.fleet.status import history_of, rollout_status
from edgetune.parts.fleet.uptime import Moment, waited
from edgetune.persisted import from_json
from edgetune.training.config import TrainConfig

CONFIG = TrainConfig(rank=2, lr=1e-2, epochs=1.0, batch_size=4, max_length=64, anchors=0)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
                    max_leaves=6)

ITEMS = {int: 1, float: 0.5, str: "x", bool: True, list: [], tuple: [], dict: {}}  # a value of each type


@pytest.fixture(scope="module")
def made(bundle, tmp_path_factory):
    """(task, answer, rows) of a small round."""
    folder = tmp_path_factory.mktemp("made")
    rows = write_lines(folder / "rows.jsonl", [{"prompt": f"say {i}", "completion": "aa"} for i in range(8)])
    make_task(bundle, folder / "task", CONFIG, RoundOptions(aggregation="frozen-a"))
    train_round(open_task(folder / "task", bundle), bundle, rows, folder / "answer", "kitchen", threads=1)
    return folder / "task", folder / "answer", rows


def opened(folder, bundle, task=None):
    """What a folder is opened as, with its arrays read; the EdgetuneError where it is refused."""
    found: RoundTask | RoundAnswer | EdgetuneError
    try:
        found = open_answer(folder, task) if task else open_task(folder, bundle)
        if isinstance(found, RoundAnswer):
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


@pytest.mark.dev
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


# ---- all other files of a fleet --------------------------------------------------------------------------------------


class Place:
    """A folder with a file of each kind. paths, wholes: by kind; open: reads one as a command or a daemon does."""

    def __init__(self, folder, bundle):
        pytest.importorskip("cryptography")
        write_fleet(bundle, folder)
        self.folder = folder
        self.code = invites.invite(folder, 0)
        members.ask(folder, "d1", "0" * 64, 1)
        members.approve(folder, "d1", 2)
        order = newest_order(folder)
        self.artifact = order.folder / "artifact"
        self.slot = Slot(folder / "slot")
        self.slot.path.mkdir()
        write_trial(self.slot, Trial("1-x", *SIDES, ["sha256:0", "sha256:1"], STARTED, 1, "because", {"p": 0.1}))
        write_origin(self.slot.path, BaseOrigin("1-x", "0", "sha256:0"))
        waited(folder, "1-x", 0, 1, Moment("boot", 1.0), folder)
        self.task = folder / "round-0004" / "task"
        self.paths = {
            "order": order.folder / "orders" / f"{order.facts.number:06}" / "order.json",
            "artifact": self.artifact / "artifact.json", "report": folder / "devices" / "d1.json",
            "member": folder / "members" / "d1.json", "invite": next((folder / "invites").glob("*.json")),
            "trial": self.slot.path / "trial.json", "origin": self.slot.path / "origin.json",
            "waited": next((folder / "fleet-rings").glob("*.json")), "history": self.task / "task.json",
            "outcome": self.task / "round.json"}
        self.wholes = {kind: path.read_text() for kind, path in self.paths.items()}

    def open(self, kind):
        {"order": self.order, "artifact": lambda: read_artifact(self.artifact), "trial": lambda: read_trial(self.slot),
         "report": lambda: read_device(self.folder, "d1"), "member": self.member,
         "invite": lambda: invites.join(self.folder, self.code, "d2", "2" * 64, 1),
         "origin": lambda: read_origin(self.slot.path), "history": lambda: history_of(self.folder),
         "outcome": lambda: read_outcome(self.task),
         "waited": lambda: waited(self.folder, "1-x", 0, 1, Moment("boot", 2.0), self.folder)}[kind]()

    def order(self):
        order = newest_order(self.folder)
        rings.advance(rings.join(order.state, ["d1", "d9"]), {}, 1, 1.0)
        rollout_status(order, {})
        assert order.state.action("d1") in ("", rings.DEPLOY, rings.CANCEL)

    def member(self):
        members.read_members(self.folder)
        members.check_of(self.folder, "d1", 1)
        members.rotate(self.folder, "d1", "4" * 64, 5)


KINDS = ("order", "artifact", "report", "member", "invite", "trial", "origin", "waited", "history", "outcome")


@pytest.fixture(scope="module")
def place(bundle, tmp_path_factory):
    return Place(tmp_path_factory.mktemp("place") / "fleet", bundle)


def refused_in_a_sentence(place, kind, text):
    """Opens a file of this content; then the file is as it was."""
    said = "opened as it is"
    try:
        place.paths[kind].write_text(text)
        place.open(kind)
    except EdgetuneError as error:
        said = str(error)
    finally:
        place.paths[kind].write_text(place.wholes[kind])
        for beside in ("members", "invites"):
            (place.folder / beside / "d2.json").unlink(missing_ok=True)
    assert len(said) > 10
    assert "\n" not in said


@pytest.mark.dev
@examples(100)
@given(data=st.data(), value=JSON)
@pytest.mark.parametrize("kind", KINDS)
def test_any_json_at_any_depth_opens_or_is_refused(place, kind, data, value):
    found = json.loads(place.wholes[kind])
    inner = found
    while True:
        keys = [*inner] if isinstance(inner, dict) else [*range(len(inner))]
        key = data.draw(st.sampled_from([*keys, "more"] if isinstance(inner, dict) else keys))
        deeper = inner.get(key) if isinstance(inner, dict) else inner[key]
        if not isinstance(deeper, dict | list) or not deeper or data.draw(st.booleans()):
            inner[key] = value
            break
        inner = deeper
    refused_in_a_sentence(place, kind, json.dumps(found))


@examples(60)
@given(text=st.text(max_size=200) | JSON.map(json.dumps), begin=st.integers(0, 900))
@pytest.mark.parametrize("kind", KINDS)
def test_any_text_opens_or_is_refused(place, kind, text, begin):
    whole = place.wholes[kind]
    refused_in_a_sentence(place, kind, text.encode("utf-8", "replace").decode())
    refused_in_a_sentence(place, kind, (whole[:begin] + text + whole[begin + len(text):]).encode(
        "utf-8", "replace").decode())


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_opens(place, kind):
    place.open(kind)
    refused_in_a_sentence(place, kind, place.wholes[kind])


def read_kinds():
    """Each dataclass that a module of the fleet reads from JSON, by its name."""
    found = {}
    for module in pkgutil.walk_packages(edgetune.parts.fleet.__path__, "edgetune.parts.fleet."):
        if ".flower" in module.name:
            continue
        code = inspect.getsource(importlib.import_module(module.name))
        for name in re.findall(r"(?<=from_json[(,])\s?([A-Z]\w+)|(?<=read_facts)\(\w+, \w+, ([A-Z]\w+)", code):
            found[max(name)] = getattr(importlib.import_module(module.name), max(name))
    return {name: kind for name, kind in sorted(found.items()) if is_dataclass(kind)
            and not hasattr(kind, "read_json")}


def test_the_kinds_of_files_are_found():
    """All but those that read what earlier versions wrote in addition: a task's and a device's."""
    assert {"AnswerFacts", "OrderFacts", "ArtifactFacts", "Invite", "RoundRecord", "DeviceFile", "Trial",
            "BaseOrigin", "BaseIdentity", "Outcome", "RingPlan", "Waited"} <= read_kinds().keys()


@pytest.mark.dev
@examples(100)
@given(data=st.data(), value=JSON)
@pytest.mark.parametrize("kind", read_kinds().values(), ids=lambda kind: kind.__name__)
def test_a_field_is_read_if_and_only_if_pydantic_reads_it(kind, data, value):
    """Whatever is nested in it: strictly, as JSON has it."""
    hints = get_type_hints(kind)
    name = data.draw(st.sampled_from([spec.name for spec in fields(kind)]))
    values = {other: ITEMS[get_origin(hint) or hint] for other, hint in hints.items() if other != name
              and (get_origin(hint) or hint) in ITEMS}
    if data.draw(st.booleans()):  # else it nearly never fits
        value = data.draw(st.lists(st.integers() | st.text(max_size=3) | st.none(), max_size=3) |
                          st.dictionaries(st.text(max_size=3), st.text(max_size=3) | st.integers(), max_size=3))
    text = json.dumps(value)
    try:
        TypeAdapter(hints[name]).validate_json(text, strict=True)
        fits = True
    except ValidationError:
        fits = False
    said = ""
    try:
        read = from_json(kind, {**values, name: json.loads(text)}, "the file")
        assert json.dumps(asdict(read)[name]) == text or is_dataclass(hints[name])
    except FormatError as error:
        said = str(error)
    if not re.search("lacks the field|has the field", said):  # which pydantic minds, or does not
        assert fits == (said == ""), said


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


@pytest.mark.dev
def test_only_what_a_trusted_key_signed_counts(bundle, made, keys, tmp_path):
    folder, trust = keys
    for name in ("home", "other"):
        make_task(bundle, tmp_path / f"task-{name}", CONFIG, RoundOptions(aggregation="frozen-a"), key=folder / name)
    task = open_task(tmp_path / "task-home", bundle)
    for name in ("home", "other"):
        train_round(task, bundle, made[2], tmp_path / f"answer-{name}", "said", threads=1, key=folder / name)
    trust()
    assert isinstance(opened(tmp_path / "task-home", bundle), RoundTask)
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
    make_task(bundle, tmp_path / "task", CONFIG, RoundOptions(aggregation="frozen-a"), key=folder / "other")
    changed = edited(tmp_path / "task", tmp_path / "changed", "task.json", lambda found: {**found, "least_rows": 7})
    with pytest.raises(FormatError, match="is not the signature"):
        open_task(changed, bundle)


def test_the_page_of_files_lists_the_keys(made):
    page = (Path(__file__).parents[3] / "docs" / "reference" / "files.md").read_text("utf-8")
    for folder, name in ((made[0], "task.json"), (made[1], "answer.json")):
        row = next(line for line in page.splitlines() if f"`{name}` |" in line)
        keys = json.loads((folder / name).read_text())
        assert {key for key in keys if f"`{key}`" not in row} == set()


def test_a_secret_in_another_script_is_no_code(place):
    found = json.loads(place.wholes["invite"])
    for secret in ("\x80" + found["secret"][1:], "\ud800"):
        refused_in_a_sentence(place, "invite", json.dumps({**found, "secret": secret}))
