"""Rounds in a folder that devices and a lead look at, each by itself, as a sync would carry it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
from click.testing import CliRunner
from fleets import signing_key
from json_lines import write_lines

from edgetune.adapters.store import open_adapter
from edgetune.cli.app import cli
from edgetune.errors import FormatError, Interrupted, UsageError
from edgetune.formats import signature
from edgetune.formats.signature import private_key
from edgetune.parts.fleet.membership import members
from edgetune.parts.fleet.pauses import again
from edgetune.parts.fleet.rounds.lead import RoundLead, devices_table, gathered, make_task
from edgetune.parts.fleet.rounds.member import Member
from edgetune.parts.fleet.rounds.options import RoundOptions
from edgetune.parts.fleet.rounds.places import check_name, newest
from edgetune.parts.fleet.rounds.task import open_task
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig

CONFIG = TrainConfig(rank=2, lr=1e-2, epochs=2.0, batch_size=4, max_length=64, anchors=0)
CALLS = RunCallbacks()


@pytest.fixture
def begun(bundle, tmp_path):
    """(folder, a function that makes a member of it by a letter)."""
    folder = tmp_path / "shared"
    make_task(bundle, folder / "round-0001" / "task", CONFIG, RoundOptions(aggregation="frozen-a", quorum=1))

    def member(letter):
        rows = write_lines(tmp_path / f"{letter}.jsonl", [{"prompt": f"say {letter} {i}", "completion": letter * 2}
                                                          for i in range(8)])
        return Member(folder, bundle, rows, letter, tmp_path / f"work-{letter}", None, 0, None, None, {"threads": 1})

    return folder, member


@pytest.mark.dev
def test_two_devices_and_a_lead_pass_through_two_rounds(bundle, begun, tmp_path):
    folder, member = begun
    members = [member("a"), member("b")]
    leader = RoundLead(folder, bundle, devices=2, seconds=1e9, key=None)
    for number in (1, 2):
        assert leader.end_round() is None
        part = members[0].answer(CALLS)
        assert (part[0].number, part[1].device) == (number, "a")
        assert members[0].answer(CALLS) is None
        assert leader.end_round() is None
        members[1].answer(CALLS)
        ended = leader.end_round()
        assert (ended.record.devices, ended.record.left_out) == (2, 0)
        assert newest(folder).number == number + 1
    assert open_adapter(newest(folder).task / "adapter", bundle.gguf).pairs
    written = {path.name for path in folder.rglob("*") if path.is_file()}
    assert written == {"task.json", "adapter.gguf", "run.json", "answer.json", "update.safetensors", "round.json"}
    assert not any(b"say" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert not [*(tmp_path / "work-a").iterdir()]


def test_a_task_that_is_not_copied_whole_is_waited_for(bundle, begun):
    folder, member = begun
    adapter = folder / "round-0001" / "task" / "adapter" / "adapter.gguf"
    whole = adapter.read_bytes()
    adapter.write_bytes(whole[:500])
    one = member("a")
    said: list[str] = []
    looks: list[object] = []

    def look():
        looks.append(1)
        if len(looks) == 3:
            adapter.write_bytes(whole)
        return one.answer(CALLS) is not None

    again(look, 0.01, lambda: False, said.append)
    assert len(looks) == 3
    assert len(said) == 1
    assert "SHA-256" in said[0]
    assert newest(folder).answer_folders()
    with pytest.raises(Interrupted, match="continue with the same command"):
        again(lambda: False, 60, lambda: True, said.append)
    assert open_task(newest(folder).task, bundle).number == 1


def test_the_quorum_is_enough_once_the_time_is_over(bundle, begun):
    folder, member = begun
    member("a").answer(CALLS)
    member("b").answer(CALLS)
    half = newest(folder).answers / "c"
    shutil.copytree(newest(folder).answers / "b", half)
    (half / "update.safetensors").write_bytes(b"half")
    (newest(folder).answers / "d.99.tmp").mkdir()
    assert RoundLead(folder, bundle, devices=3, seconds=1e9, key=None).end_round() is None
    ended = RoundLead(folder, bundle, devices=3, seconds=0.0, key=None).end_round()
    assert ended.record.devices == 2
    assert [one.device for one in ended.left_out] == ["c"]


def test_a_stopped_device_continues_and_another_with_the_same_home_does_not_care(begun, tmp_path):
    folder, member = begun
    one, other = (replace(member(letter), work=tmp_path / "home") for letter in "ab")
    steps: list[object] = []
    calls = RunCallbacks(lambda event: steps.append(1) if event["event"] == "step" else None, lambda: len(steps) == 2)
    with pytest.raises(Interrupted):
        one.answer(calls)
    assert not newest(folder).answer_folders()
    assert [*one.work.iterdir()]
    assert other.answer(CALLS)
    assert one.answer(CALLS)
    assert {path.name for path in newest(folder).answer_folders()} == {"a", "b"}


def test_where_devices_join_an_answer_counts_by_its_signature(bundle, begun, tmp_path):
    """Who can write into the folder can answer in nobody's name."""
    folder, member = begun
    keys = {name: signing_key(tmp_path / name) for name in ("a", "b", "c", "d", "other")}
    for name in "abcd":
        members.ask(folder, name, private_key(keys[name]).public_key().public_bytes_raw().hex(), 1)
        members.approve(folder, name, 2)
    for name, key in (("a", keys["a"]), ("b", None), ("c", keys["other"])):
        replace(member(name), key=key).answer(CALLS)
    place = newest(folder)
    shutil.copytree(place.answers / "a", place.answers / "d")  # that of another device
    leader = RoundLead(folder, bundle, devices=2, seconds=1e9, key=None)
    assert leader.end_round() is None
    signature.sign(place.answers / "d" / "answer.json", private_key(keys["d"]))
    ended = RoundLead(folder, bundle, devices=1, seconds=1e9, key=None).end_round()
    assert [one["device"] for one in devices_table(ended)] == ["a"]  # by its name, and not its key
    first = {name: private_key(keys[name]).public_key().public_bytes_raw().hex()[:16] for name in keys}
    assert {one.device: one.reason for one in ended.left_out} == {
        "b": f"manifest.sig is missing, and the key {first['b']} had to sign",
        "c": f"manifest.sig is of the key {first['other']}, and the key {first['c']} had to sign",
        "d": "the answer is of 'a'"}


def test_one_changed_byte_of_a_signed_answer(bundle, begun, tmp_path):
    folder, member = begun
    key = signing_key(tmp_path / "key")
    members.ask(folder, "a", private_key(key).public_key().public_bytes_raw().hex(), 1)
    members.approve(folder, "a", 2)
    replace(member("a"), key=key).answer(CALLS)
    answer = newest(folder).answers / "a" / "answer.json"
    answer.write_text(answer.read_text().replace('"rows": ', '"rows":  '))
    task = open_task(newest(folder).task, bundle)
    answers, left_out = gathered(task, newest(folder).answer_folders(), partial(members.check_of, folder, number=1))
    assert answers == []
    assert "is not the signature of" in left_out[0].reason


def test_folders_and_names_that_are_none_are_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no folder"):
        newest(tmp_path / "nothing")
    with pytest.raises(FormatError, match="holds no round-0001/task"):
        newest(tmp_path)
    for name in ("", "../x", "a/b", "a.1.tmp", "x" * 65):
        with pytest.raises(UsageError, match="use 1 to 64 letters"):
            check_name(name)


@pytest.mark.dev
def test_the_commands(bundle, begun, tmp_path, monkeypatch):
    """A lead and a device, in one process each as on one machine; a second device joins later."""
    folder, member = begun
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    rows = {letter: member(letter).rows for letter in "ab"}

    def run(*words):
        return CliRunner().invoke(cli, ["fleet", *map(str, words), "--model", str(bundle.path), "--every", "0.1"])

    for number in (1, 2):
        for letter in "ab":
            done = run("follow", folder, rows[letter], "--rounds", 1, "--device", letter, "--threads", 1, "--no-govern",
                       "--json")
            assert json.loads(done.stdout)["answered"] == [number], done.output
        done = run("lead", folder, "--rounds", 1, "--devices", 2)
        assert f"round {number}: 2 devices" in done.output
        assert "1 rounds ended" in done.output
    assert newest(folder).number == 3
    member("a").answer(CALLS)
    for path, arrived in ((folder, ["a"]), (newest(folder).task, None)):
        shown = CliRunner().invoke(cli, ["fleet", "status", str(path), "--json"])
        found = json.loads(shown.stdout)
        assert [one["round"] for one in found["rounds"]["records"]] == [1, 2]
        assert (found["rounds"]["number"], found["rounds"]["arrived"]) == (3, arrived)
    shown = CliRunner().invoke(cli, ["fleet", "status", str(folder)])
    assert "round 3 of tiny.gguf: 1 answers have arrived: a" in shown.output
    wrong = run("follow", folder, rows["a"], "--noise-norm", "1")
    assert wrong.exit_code == 2
