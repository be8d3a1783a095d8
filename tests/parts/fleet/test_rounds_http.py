"""Rounds that a daemon serves and devices fetch, compared with the same rounds in a folder."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress

import httpx
import pytest
from commands import run
from daemons import daemon, process
from hypothesis import assume, given
from hypothesis import strategies as st
from json_lines import write_lines

from edgetune.daemon.client import Client
from edgetune.errors import EdgetuneError, FormatError, MismatchError, NotFoundError, UnansweredError, UsageError
from edgetune.parts.fleet.carriers.exchange import CopyMember, fetch, served_round, take_answer
from edgetune.parts.fleet.carriers.http.child import RoundsInChild
from edgetune.parts.fleet.carriers.http.client import RoundsByHttp
from edgetune.parts.fleet.membership import members
from edgetune.parts.fleet.membership.lead import ask_to_join, open_lead
from edgetune.parts.fleet.rounds.lead import RoundLead, make_task
from edgetune.parts.fleet.rounds.member import Member
from edgetune.parts.fleet.rounds.options import RoundOptions
from edgetune.parts.fleet.rounds.places import RoundPlace, newest
from edgetune.parts.fleet.rounds.task import open_task, read_task
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig

pytest.importorskip("cryptography")

CONFIG = TrainConfig(rank=2, lr=1e-2, epochs=2.0, batch_size=4, max_length=64, anchors=0)
CALLS = RunCallbacks()
ROUND = "round-0001"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return {letter: write_lines(folder / f"{letter}.jsonl", [{"prompt": f"say {letter} {i}", "completion": letter * 2}
                                                             for i in range(8)]) for letter in "ab"}


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))


def begin(bundle, folder, **options):
    make_task(bundle, folder / ROUND / "task", CONFIG, RoundOptions(aggregation="frozen-a", quorum=1), **options)
    return folder


def follower(server, bundle, rows, letter, folder):
    return CopyMember(server, Member(folder / f"copy-{letter}", bundle, rows[letter], letter,
                                     folder / f"work-{letter}", None, 0, None, None, {"threads": 1}))


def lead(folder, bundle):
    return RoundLead(folder, bundle, devices=2, seconds=1e9, key=None)


@pytest.fixture(scope="module")
def by_folder(bundle, rows, tmp_path_factory):
    """The adapters of two rounds in a folder."""
    work = tmp_path_factory.mktemp("by-folder")
    folder = begin(bundle, work / "shared")
    for _ in range(2):
        for letter in "ab":
            Member(folder, bundle, rows[letter], letter, work / letter, None, 0, None, None,
                   {"threads": 1}).answer(CALLS)
        lead(folder, bundle).end_round()
    return [adapter_of(folder, number) for number in (2, 3)]


def adapter_of(folder, number):
    return (RoundPlace(folder, number).task / "adapter" / "adapter.gguf").read_bytes()


@pytest.mark.dev
def test_two_devices_pass_through_two_rounds_as_in_a_folder(bundle, rows, by_folder, tiny_llama, tmp_path):
    folder = tmp_path / "served"
    loaded = []

    class Counted(RoundsByHttp):
        def load(self, number, file, target, most):
            loaded.append((number, file))
            super().load(number, file, target, most)

    with daemon(tiny_llama, tmp_path / "state", fleet=str(folder)) as running, Client(running.url) as client:
        both = [follower(Counted(client), bundle, rows, letter, tmp_path) for letter in "ab"]
        with pytest.raises(FormatError, match="no round yet"):
            both[0].answer(CALLS)
        begin(bundle, folder)
        for number in (1, 2):
            for one in both:
                part = one.answer(CALLS)
                assert (part[0].number, part[1].device) == (number, one.member.device)
                assert one.answer(CALLS) is None
                assert one.server.round(one.member.device, one._known) is None  # no body: nothing is new
            assert lead(folder, bundle).end_round().record.devices == 2
            assert adapter_of(folder, number + 1) == by_folder[number - 1]
        assert len(loaded) == 2 * 2 * 3
        assert [path.name for path in (tmp_path / "copy-a").iterdir()] == ["round-0002"]
        both[0]._known = ""
        again = follower(Counted(client), bundle, rows, "a", tmp_path)  # the command is started again
        assert again.answer(CALLS)[0].number == 3
        assert again.answer(CALLS) is None
        assert len(loaded) == 15
        assert not any(b"say" in path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_killed_daemon_changes_nothing(bundle, rows, by_folder, tiny_llama, tmp_path):
    """Real processes: a daemon that is killed in a round and started again, a device, and a lead."""
    folder = begin(bundle, tmp_path / "served")
    (tmp_path / "daemon").mkdir()

    def follow(url, letter):
        command = [sys.executable, "-m", "edgetune", "fleet", "follow", url, rows[letter], "--model", bundle.path,
                   "--rounds", 2, "--every", 0.2, "--device", letter, "--threads", 1, "--no-govern"]
        own = {**os.environ, "XDG_STATE_HOME": str(tmp_path / letter)}
        return subprocess.Popen([str(word) for word in command], env=own, stdout=subprocess.PIPE, text=True)

    options = ("--fleet", folder, "--max-kl", "off", "--canary-rise", "off")
    with process(tiny_llama, tmp_path / "daemon", *options) as first:
        port = first.place[1]
        devices = [follow(first.url, letter) for letter in "ab"]
        until(lambda: newest(folder).answer_folders())
    left = newest(folder).answers / "a.9.tmp"  # half an upload
    left.mkdir()
    time.sleep(0.5)
    with process(tiny_llama, tmp_path / "daemon", *options[:2], "--port", port, *options[2:]):
        leader = lead(folder, bundle)
        for _ in range(2):
            until(leader.end_round)
        said = [device.communicate(timeout=60)[0] for device in devices]
    assert [device.returncode for device in devices] == [0, 0], said
    assert [adapter_of(folder, number) for number in (2, 3)] == by_folder


def until(what, seconds=60):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)
    return found


@pytest.mark.dev
def test_devices_that_joined(bundle, rows, by_folder, tiny_llama, tmp_path, monkeypatch):
    folder = begin(bundle, tmp_path / "served")
    with daemon(tiny_llama, tmp_path / "state", fleet=str(folder)) as running:
        for letter in "ab":
            monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / letter))
            code = json.loads(run("fleet", "invite", folder, "--json"))["code"]
            ask_to_join(running.url, code, letter)
            assert "waits for its approval" in follow(running.url, rows[letter], bundle, code=2)
            run("fleet", "approve", folder, letter)
            assert "it has joined" in follow(running.url, rows[letter], bundle, "--device", "c", code=2)
            found = follow(running.url, rows[letter], bundle, "--json")
            assert json.loads(found) == {"device": letter, "answered": [1]}
            assert run("fleet", "rotate", running.url)
        with open_lead(running.url, None, "")[0] as client:
            there = RoundsByHttp(client)
            answer = newest(folder).answers / "b"
            with pytest.raises(UsageError, match="a device speaks of itself alone"):
                there.send(1, "a", answer)
            with pytest.raises(UsageError, match="a device speaks of itself alone"):
                there.round("a", "")
            there.send(1, "b", answer)  # the answer to the first request may have been lost
            shutil.rmtree(answer)
            with pytest.raises(UsageError, match="the answer is of 'a', sent as b"):
                there.send(1, "b", newest(folder).answers / "a")
        assert follow(running.url, rows["b"], bundle)
        with Client(running.url) as stranger, pytest.raises(UsageError, match="not signed by a device"):
            RoundsByHttp(stranger).send(1, "c", newest(folder).answers / "a")
        shutil.copytree(newest(folder).answers / "a", newest(folder).answers / "c")  # as a sync would bring it
        members.revoke(folder, "a", 1)
        assert lead(folder, bundle).end_round() is None
        ended = RoundLead(folder, bundle, devices=1, seconds=1e9, key=None).end_round()
        assert [one.device for one in ended.left_out] == ["a", "c"]
        assert "was revoked" in ended.left_out[0].reason
        assert "no device 'c' has joined" in ended.left_out[1].reason
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a"))
        assert "a was revoked" in follow(running.url, rows["a"], bundle, code=2)
    shutil.rmtree(folder / "round-0002")
    shutil.rmtree(folder / "members")
    shutil.rmtree(folder / ROUND / "answers" / "c")
    lead(folder, bundle).end_round()
    assert adapter_of(folder, 2) == by_folder[0]


def follow(url, rows, bundle, *options, code=0):
    return run("fleet", "follow", url, rows, "--model", bundle.path, "--rounds", 1, "--every", 0.1, "--threads", 1,
               "--no-govern", *options, code=code)


@pytest.fixture(scope="module")
def answered(bundle, rows, tmp_path_factory):
    """(a folder whose newest round has no answer, an answer to it)"""
    work = tmp_path_factory.mktemp("answered")
    folder = begin(bundle, work / "served")
    Member(folder, bundle, rows["a"], "a", work / "a", None, 0, None, None, {"threads": 1}).answer(CALLS)
    shutil.move(newest(folder).answers / "a", work / "answer")
    return folder, work / "answer"


def test_a_task_is_read_without_its_model(bundle, answered):
    task, blank = open_task(newest(answered[0]).task, bundle), read_task(newest(answered[0]).task)
    assert {name: (pair.a.shape, pair.b.shape) for name, pair in task.pairs.items()} == {
        name: (pair.a.shape, pair.b.shape) for name, pair in blank.pairs.items()}
    assert (task.name, task.half, task.bytes) == (blank.name, blank.half, blank.bytes)


def test_what_is_no_answer_leaves_nothing(answered):
    folder, answer = answered
    whole = {path.name: path.read_bytes() for path in answer.iterdir()}
    facts = json.loads(whole["answer.json"])

    def take(number=1, device="a", **changes):
        files = {**whole, **{name.replace("_", "."): content for name, content in changes.items()}}
        return take_answer(folder, number, device, {name: io.BytesIO(content) for name, content in files.items()})

    wrong = [{"answer_json": b""}, {"answer_json": b"[]"}, {"update_safetensors": whole["update.safetensors"][:-1]},
             {"update_safetensors": b"x" * 3_000_000}, {"answer_json": b" " * 2_000_000}, {"manifest_sig": b"{}"},
             *({"answer_json": json.dumps({**facts, **change}).encode()} for change in (
                 {"task": "0" * 64}, {"base": "sha256:0"}, {"rows": 0}, {"norm": 1e999}, {"rank": 1}, {"half": "a"},
                 {"device": "b"}, {"version": 2}, {"more": 1}))]
    for change in wrong:
        with pytest.raises(EdgetuneError) as said:
            take(**change)
        assert str(folder) not in str(said.value)
        assert "round-0001" not in str(said.value)
    with pytest.raises(NotFoundError, match="round 2 has ended, the newest is 1"):
        take(number=2)
    for device in ("../x", "a.b", ""):
        with pytest.raises(UsageError):
            take(device=device)
    assert not list(newest(folder).answers.iterdir())
    assert take().device == "a"
    assert take().device == "a"
    with pytest.raises(UsageError, match="a has answered this round"):
        take(answer_json=b"{}")
    shutil.rmtree(newest(folder).answers)


@given(st.data())
def test_bytes_that_were_changed_leave_nothing(answered, data):
    folder, answer = answered
    files = {path.name: path.read_bytes() for path in answer.iterdir()}
    name = data.draw(st.sampled_from([*files]))
    whole = files[name]
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.integers(0, 9))
    changed = whole[:at] + data.draw(st.binary(max_size=9)) + whole[at + cut:]
    assume(changed != whole)
    sent = {**files, name: changed}
    with suppress(EdgetuneError):
        take_answer(folder, 1, "a", {each: io.BytesIO(content) for each, content in sent.items()})
    if not any(newest(folder).answers.iterdir()):
        return
    assert name == "answer.json"  # a number that is for people alone
    shutil.rmtree(newest(folder).answers / "a")


def test_requests_of_strangers(answered, tiny_llama, tmp_path):
    folder, answer = answered
    with daemon(tiny_llama, tmp_path / "state", fleet=str(folder)) as running, \
            httpx.Client(base_url=running.url) as http:
        place = "/v1/fleet/rounds/1/task/"
        for file in ("../answers/a/answer.json", "server.safetensors", "round.json", "adapter", "..", "%2e%2e/x"):
            assert http.get(place + file).status_code == 404
        for number in ("0", "2", "-1", "x", "9" * 30):
            assert http.get(f"/v1/fleet/rounds/{number}/task/task.json").status_code in (400, 404)
        assert http.get(place + "task.json").json()["round"] == 1
        assert http.get("/v1/fleet/round/a.b").status_code == 400
        found = http.get("/v1/fleet/round/a")
        assert found.json() == served_round(folder, "a")
        same = http.get("/v1/fleet/round/a", headers={"If-None-Match": found.headers["ETag"]})
        assert (same.status_code, same.content) == (304, b"")
        for content in (b"", b"--x", b"\0" * 5000):
            said = http.put("/v1/fleet/rounds/1/answers/a", content=content,
                            headers={"content-type": "multipart/form-data; boundary=x"})
            assert said.status_code == 400
            assert said.json()["error"]["message"]
        files = {"answer": (answer / "answer.json").read_bytes(), "update": b"x"}
        assert http.put("/v1/fleet/rounds/1/answers/a", files=files).status_code == 400
        assert not any(newest(folder).answers.glob("*"))
    with daemon(tiny_llama, tmp_path / "other") as running, httpx.Client(base_url=running.url) as http:
        assert "serves no fleet" in http.get("/v1/fleet/round/a").json()["error"]["message"]
    (tmp_path / "empty").mkdir()
    assert served_round(tmp_path / "empty", "a") == {"round": 0, "task": "", "files": {}, "answered": False}


@pytest.mark.dev
def test_what_is_damaged_on_the_way_leaves_nothing(answered, bundle, rows, tmp_path):
    folder, _ = answered
    found = served_round(folder, "a")

    class Server:
        ends = False

        def round(self, _device, _known):
            return found, "x"

        def load(self, number, file, target, most):
            shutil.copyfile(RoundPlace(folder, number).task / file, target)
            assert target.stat().st_size == most

        def rest(self):
            pass

        def send(self, _number, _device, _answer):
            if self.ends:
                raise NotFoundError("round 1 has ended, the newest is 2")
            raise UnansweredError("no daemon answers")

    for change in ({"round": -1}, {"round": "1"}, {"files": None}, {"files": {"../x": 1}}, {"answered": None},
                   {"files": {**found["files"], "task.json": 0}}):
        with pytest.raises(FormatError, match="the round that was sent is none"):
            fetch(Server(), tmp_path / "copy", {**found, **change})
    with pytest.raises(FormatError, match="changed while it was loaded"):
        fetch(Server(), tmp_path / "copy", {**found, "task": "0" * 64})
    assert fetch(Server(), tmp_path / "copy", {"round": 0}) is None
    assert not any(path.is_file() for path in (tmp_path / "copy").rglob("*"))
    one = follower(Server(), bundle, rows, "a", tmp_path)
    with pytest.raises(UnansweredError):
        one.answer(CALLS)
    made = one.member.folder / ROUND / "answers" / "a" / "update.safetensors"
    whole = made.read_bytes()
    with pytest.raises(UnansweredError):  # it is sent again, and not trained again
        one.answer(RunCallbacks(lambda _: pytest.fail("it trains again")))
    made.write_bytes(whole[:-1])
    with pytest.raises(FormatError, match="has the SHA-256"):
        one.answer(CALLS)
    assert not made.exists()
    with pytest.raises(UnansweredError):
        one.answer(CALLS)
    assert made.read_bytes() == whole
    one.server.ends = True
    with pytest.raises(FormatError, match="round 1 has ended"):
        one.answer(CALLS)
    assert not made.exists()


def test_answers_of_others_are_refused_before_they_are_read(answered):
    folder, _ = answered
    members.begin(folder)
    try:
        with pytest.raises(MismatchError, match="no device 'a' has joined"):
            take_answer(folder, 1, "a", {})
    finally:
        shutil.rmtree(folder / "members")


@pytest.mark.dev
def test_the_process_that_asks_ends_before_a_training(bundle, rows, tiny_llama, tmp_path, monkeypatch):
    folder = begin(bundle, tmp_path / "served")
    alone = []
    train = Member.make
    with daemon(tiny_llama, tmp_path / "state", fleet=str(folder)) as running, \
            RoundsInChild(running.url, None, "a") as server:
        monkeypatch.setattr(Member, "make", lambda self, place, calls: (
            alone.append(server._process), train(self, place, calls))[1])
        one = follower(server, bundle, rows, "a", tmp_path)
        assert one.answer(CALLS)[0].number == 1
        assert alone == [None]
        server._process.kill()
        with pytest.raises(UnansweredError, match="has ended: signal 9"):
            one.answer(CALLS)
        assert one.answer(CALLS) is None
        with pytest.raises(NotFoundError, match="round 2 has ended"):
            server.send(2, "a", newest(folder).answers / "a")
    assert server._process is None


def test_a_key_file_is_of_a_url(bundle, rows, tmp_path):
    assert "is no URL" in follow(tmp_path, rows["a"], bundle, "--lead-key-file", tmp_path / "key", code=2)
