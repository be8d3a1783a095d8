"""Rounds that are summed in secret, carried by a daemon, among devices that joined."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import run
from daemons import daemon, process
from secret_fleets import CALLS, CONFIG, DEVICES, OPTIONS, changed, check_sum, learn

pytest.importorskip("cryptography")

from edgetune.daemon.client import Client
from edgetune.daemon.lead import ask_to_join, open_lead, rotate
from edgetune.daemon.rounds import RoundsByHttp
from edgetune.errors import EdgetuneError, FormatError, NotFoundError, UsageError
from edgetune.fleet.carriers.folder import Lead, Member
from edgetune.fleet.carriers.http import HttpMember
from edgetune.fleet.carriers.places import Place, newest
from edgetune.fleet.carriers.secret_part import SecretPart
from edgetune.fleet.joining import members
from edgetune.fleet.joining.cards import cards_of
from edgetune.fleet.joining.device import SECRET, joined
from edgetune.fleet.rounds.making import make_task
from edgetune.fleet.rounds.task import Secret, open_task
from edgetune.fleet.secret.key import make_key

PATIENCE = 240  # seconds; a busy machine takes as many


@pytest.fixture(scope="module")
def learned(bundle, tmp_path_factory):
    return learn(bundle, tmp_path_factory.mktemp("learned"))


def join(url, folder, home, monkeypatch, approve=True):
    """Lets the devices join; each has its own home."""
    for name in DEVICES:
        monkeypatch.setenv("XDG_STATE_HOME", str(home / name))
        ask_to_join(url, json.loads(run("fleet", "invite", folder, "--json"))["code"], name)
        if approve:
            members.approve(folder, name, 1)


def begin(bundle, folder):
    make_task(bundle, folder / "round-0001" / "task", CONFIG, OPTIONS, secret=Secret.of(cards_of(folder)[0], None))


def until(what, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)
    return found


def start(log, home, *words):
    """A command of fleet as a process."""
    command = [sys.executable, "-m", "edgetune", "fleet", *map(str, words), "--every", "0.2"]
    with log.open("a") as out:
        return subprocess.Popen(command, env={**os.environ, "XDG_STATE_HOME": str(home)}, stdout=out, stderr=out,
                                text=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_rounds_of_real_processes_of_which_some_are_killed(bundle, learned, tiny_llama, tmp_path, monkeypatch):
    """Round 1: a device is killed before its answer, the lead between the request and the sum, the daemon, too. Round
    2: a device is killed after its answer.
    """
    folder = tmp_path / "served"
    folder.mkdir()
    (tmp_path / "daemon").mkdir()
    options = ("--fleet", folder, "--max-kl", "off", "--canary-rise", "off")
    started = []

    def follow(url, name):
        one = start(tmp_path / f"{name}.log", tmp_path / name, "follow", url, learned[1][name], "--model", bundle.path,
                    "--secret", url, "--eval", "none", "--threads", 1, "--no-govern", "--rounds", 2)
        started.append(one)
        return one

    def lead(*more):
        one = start(tmp_path / "lead.log", tmp_path / "lead", "lead", folder, "--model", bundle.path, "--rounds", 1,
                    *more)
        started.append(one)
        return one

    try:
        with process(tiny_llama, tmp_path / "daemon", *options) as first:
            url, port = first.url, first.place[1]
            join(url, folder, tmp_path, monkeypatch)
            begin(bundle, folder)
            place = newest(folder)
            late = follow(url, "d")
            until(lambda: [*(tmp_path / "d").rglob("round-0001/task/task.json")])
            late.kill()
            late.wait()
            assert not (place.answers / "d").exists()
            devices = {name: follow(url, name) for name in "abc"}
            leader = lead("--devices", 3)
            until(lambda: place.is_requested)
            leader.kill()
            leader.wait()
        with process(tiny_llama, tmp_path / "daemon", *options[:2], "--port", port, *options[2:]):
            leader = lead("--devices", 3)
            assert leader.wait(PATIENCE) == 0
            check_sum(folder, bundle, learned[0], "abc")
            place = newest(folder)
            devices["d"] = follow(url, "d")
            until(lambda: (place.answers / "c").exists())
            devices["c"].kill()
            until(lambda: len(place.answer_folders()) == 4)
            assert lead().wait(PATIENCE) == 0
            facts = open_task(newest(folder).task, bundle).facts
            assert [(one["round"], one["devices"], one["left_out"]) for one in facts.history] == [(1, 3, 0), (2, 4, 0)]
            assert not (place.revealed / "c").exists()
            for name in "ab":
                assert devices[name].wait(PATIENCE) == 0
            devices["d"].send_signal(signal.SIGINT)
            assert devices["d"].wait(PATIENCE) == 75
        assert "masked" in (tmp_path / "a.log").read_text()
        assert "round 1: 3 devices" in (tmp_path / "lead.log").read_text()
    except BaseException:
        for log in tmp_path.glob("*.log"):
            print(log.name, log.read_text()[-2000:], sep="\n")
        raise
    finally:
        for one in started:
            one.kill()
            one.wait()


class Device:
    """One that follows a daemon in this process."""

    def __init__(self, url, bundle, rows, name, folder):
        os.environ["XDG_STATE_HOME"] = str(folder / name)
        self.name = name
        self.own = joined(url)
        self.said = []
        self.part = SecretPart(self.own.folder / SECRET, True, None, None, self.said.append)
        member = Member(folder / f"copy-{name}", bundle, rows, name, folder / f"work-{name}", "none", 0, None, None,
                        {"threads": 1}, self.part)
        self.server = RoundsByHttp(open_lead(url, None, "")[0])
        self.member = HttpMember(self.server, member)

    def answer(self):
        return self.member.answer(CALLS)


def test_steps_of_devices_that_joined(bundle, learned, tiny_llama, tmp_path, monkeypatch):
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with daemon(tiny_llama, tmp_path / "state", fleet=str(folder)) as running:
        join(running.url, folder, tmp_path, monkeypatch)
        rotate(running.url, joined(running.url))  # of d: the new key signs its card
        assert all(card.check("x").key for card in cards_of(folder)[0])
        begin(bundle, folder)
        devices = {name: Device(running.url, bundle, learned[1][name], name, tmp_path) for name in DEVICES}
        shutil.copyfile(devices["d"].part.key, tmp_path / "right.pem")
        devices["d"].part.key.unlink()
        make_key(devices["d"].part.key)
        with pytest.raises(FormatError, match="this device is not among those of the round"):  # a wrong key
            devices["d"].answer()
        assert devices["d"].answer() is None
        assert devices["d"].server.round("d", devices["d"].member._known) is None  # an idle device: no body
        place = newest(folder)
        for name in "abc":
            part = devices[name].answer()
            assert (part.place.number, part.is_over) == (1, False)
            assert devices[name].answer() is None
        assert "which is new to this device, signed by a key that begins with" in devices["a"].said[0]
        with pytest.raises(UsageError, match=r"is of a|is not of d"):  # an answer in another's name
            devices["d"].server.send(1, "d", place.answers / "a")
        with pytest.raises(UsageError, match="a has answered this round"):
            devices["a"].server.send(1, "a", place.answers / "b")
        devices["a"].server.send(1, "a", place.answers / "a")  # the answer to the first request may have been lost
        with pytest.raises(NotFoundError, match="round 1 asks for no shares"):
            devices["a"].server.send(1, "a", place.answers / "a", "revealed")
        leader = Lead(folder, bundle, 3, 1e9, None)
        assert leader.end_round() is None
        assert place.is_requested
        with pytest.raises(NotFoundError, match="round 1 takes no more answers"):
            devices["d"].server.send(1, "d", place.answers / "a")
        assert devices["d"].answer() is None
        (place.revealed / "a.9.tmp").mkdir(parents=True)  # half an upload of a daemon that was killed
        for name in "abc":
            part = devices[name].answer()
            assert (part.facts, part.is_over) == (None, True)
            assert devices[name].answer() is None
        with pytest.raises(UsageError, match="b has revealed its shares"):
            devices["b"].server.send(1, "b", place.revealed / "a", "revealed")
        shutil.copytree(place.revealed / "b", tmp_path / "lie")
        changed(tmp_path / "lie", "revealed", own=lambda own: own ^ 1)
        shutil.rmtree(place.revealed / "b")
        devices["b"].server.send(1, "b", tmp_path / "lie", "revealed")  # only the lead can find that it lies
        ended = leader.end_round()  # no further shares can come
        assert re.fullmatch("2 devices have revealed right shares of [abc], and 3 must", ended.dropped)
        assert newest(folder).number == 2
        with Client(running.url) as stranger, pytest.raises(UsageError, match="not signed by a device"):
            RoundsByHttp(stranger).send(2, "a", place.revealed / "a", "revealed")
        shutil.copyfile(tmp_path / "right.pem", devices["d"].part.key)
        again = {name: Device(running.url, bundle, learned[1][name], name, tmp_path) for name in DEVICES}
        members.revoke(folder, "c", 2)
        for name in "abd":
            assert again[name].answer().place.number == 2
        with pytest.raises(EdgetuneError, match="c was revoked"):
            again["c"].answer()
        leader = Lead(folder, bundle, 3, 1e9, None)
        leader.end_round()
        for name in "abd":
            assert again[name].answer().is_over
        assert leader.end_round().record.devices == 3
        following = open_task(newest(folder).task, bundle).secret
        assert [card.device for card in sorted(following.named(), key=lambda card: card.device)] == ["a", "b", "d"]
        assert not [path for path in Place(folder, 2).answers.iterdir() if path.name == "c"]
        for one in (*devices.values(), *again.values()):
            one.server.client._http.close()


def test_cards_of_others_are_refused_when_devices_join(tmp_path):
    members.begin(tmp_path)
    with pytest.raises(EdgetuneError, match="is not signed by that device"):
        members.ask(tmp_path, "a", "1" * 64, "2" * 64, 1, "0" * 128)
    members.ask(tmp_path, "a", "1" * 64, "2" * 64, 1)
    members.approve(tmp_path, "a", 1)
    with pytest.raises(EdgetuneError, match="is not signed by that device"):
        members.rotate(tmp_path, "a", "3" * 64, 1, "0" * 128)
    assert cards_of(tmp_path)[0][0].key == ""
