"""Answers of devices that joined: each is signed by the key of its device, over HTTP and in a folder."""

from __future__ import annotations

import json
import shutil

import pytest
from commands import run
from daemons import daemon
from fleets import signing_key
from json_lines import write_lines

from edgetune.errors import MismatchError
from edgetune.parts.fleet.carriers.exchange import served_round
from edgetune.parts.fleet.membership import invites, members
from edgetune.parts.fleet.membership.device import SIGNING, joined
from edgetune.parts.fleet.membership.lead import ask_to_join
from edgetune.parts.fleet.rounds.lead import RoundLead, devices_table, make_task
from edgetune.parts.fleet.rounds.options import RoundOptions
from edgetune.parts.fleet.rounds.places import newest
from edgetune.training.config import TrainConfig

pytest.importorskip("cryptography")

CONFIG = TrainConfig(rank=2, lr=1e-2, epochs=2.0, batch_size=4, max_length=64, anchors=0)


@pytest.fixture
def served(bundle, tiny_llama, tmp_path, monkeypatch):
    """(the folder, a function that makes this machine one of the devices a and b and returns its rows, the URL)"""
    folder = tmp_path / "served"
    make_task(bundle, folder / "round-0001" / "task", CONFIG, RoundOptions(aggregation="frozen-a", quorum=1))
    rows = {letter: write_lines(tmp_path / f"{letter}.jsonl", [
        {"prompt": f"say {letter} {i}", "completion": letter * 2} for i in range(8)]) for letter in "ab"}

    def be(letter):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / letter))
        return rows[letter]

    with daemon(tiny_llama, tmp_path / "state", fleet=str(folder)) as running:
        for letter in "ab":
            be(letter)
            ask_to_join(running.url, invites.invite(folder, 2**31), letter)
            members.approve(folder, letter, 1)
        yield folder, be, running.url


def follow(bundle, place, rows, *options, code=0):
    return run("fleet", "follow", place, rows, "--model", bundle.path, "--rounds", 1, "--every", 0.1, "--threads", 1,
               "--no-govern", *options, code=code)


def lead(folder, bundle, devices):
    return RoundLead(folder, bundle, devices, seconds=1e9, key=None).end_round()


@pytest.mark.dev
def test_over_http_a_device_signs_by_itself(bundle, served, tmp_path):
    folder, be, url = served
    follow(bundle, url, be("a"))
    answers = newest(folder).answers
    assert json.loads((answers / "a" / "manifest.sig").read_text())["public_key"] == joined(url).public()
    shutil.copytree(answers / "a", answers / "b")  # what a sync brings in another's name
    assert not served_round(folder, "b")["answered"]
    assert lead(folder, bundle, 2) is None
    follow(bundle, url, be("b"))
    assert json.loads((answers / "b" / "answer.json").read_text())["device"] == "b"
    be("a")
    before = members.read_member(folder, "a").key
    run("fleet", "rotate", url)
    assert served_round(folder, "a")["answered"]  # the key before counts until the round ends
    ended = lead(folder, bundle, 2)
    assert [one["device"] for one in devices_table(ended)] == ["a", "b"]
    assert ended.left_out == []
    follow(bundle, url, be("a"))
    shutil.copytree(answers / "a", newest(folder).answers / "b")
    (newest(folder).answers / "b" / "manifest.sig").unlink()
    signed = newest(folder).answers / "a"
    check = members.check_of(folder, "a", 2)
    check(signed, (signed / "answer.json").read_bytes())
    with pytest.raises(MismatchError, match=f"is of the key {before:.16}, and the key "):
        check(answers / "a", (answers / "a" / "answer.json").read_bytes())
    assert members.check_of(folder, "a", 1)(answers / "a", (answers / "a" / "answer.json").read_bytes())
    assert not served_round(folder, "b")["answered"]  # what somebody else wrote in its name
    wrong = follow(bundle, url, be("a"), "--sign", signing_key(tmp_path / "key"), code=2)
    assert "--sign is given, and this device signs by the key with which it joined" in wrong


def test_in_a_folder_a_device_signs_where_it_says_which_fleet_it_joined(bundle, served):
    folder, be, url = served
    follow(bundle, folder, be("a"), "--joined", url)
    unsigned = follow(bundle, folder, be("b"), "--device", "b")
    assert "answers round 1" in unsigned
    ended = lead(folder, bundle, 1)
    assert [one["device"] for one in devices_table(ended)] == ["a"]
    assert [one.device for one in ended.left_out] == ["b"]
    assert ended.left_out[0].reason.startswith("manifest.sig is missing, and the key ")
    assert "left out: round 1: b: manifest.sig is missing" in run("fleet", "status", folder)
    key = joined(url).folder / SIGNING
    for options, said in ((("--joined", url, "--sign", key), "--sign is given, too"),
                          (("--joined", url, "--device", "c"), "it has joined"),
                          (("--joined", "http://127.0.0.1:1"), "has not joined http://127.0.0.1:1")):
        assert said in follow(bundle, folder, be("b"), *options, code=2)
    assert "where the device signs by itself" in follow(bundle, url, be("b"), "--joined", url, code=2)
