"""Rounds that are summed in secret in a folder, of devices that joined: each signs what a sync brings."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from subprocess import PIPE, Popen

import pytest
from daemons import daemon
from secret_fleets import CALLS, CONFIG, DEVICES, OPTIONS, Fleet, changed, check_sum, learn

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgetune.daemon.lead import ask_to_join
from edgetune.errors import EdgetuneError
from edgetune.fleet.carriers.folder import Lead
from edgetune.fleet.carriers.places import newest, newest_number
from edgetune.fleet.carriers.secret_lead import sender_of
from edgetune.fleet.joining import invites, members
from edgetune.fleet.joining.cards import cards_of
from edgetune.fleet.rounds.making import make_task
from edgetune.fleet.rounds.task import Secret, open_task
from edgetune.fleet.secret.cards import make_card
from edgetune.fleet.secret.files import open_masked, open_request
from edgetune.fleet.secret.key import load_key, write_private
from edgetune.fleet.secret.round import circle_of
from edgetune.formats.signature import private_key, sign


@pytest.fixture(scope="module")
def learned(bundle, tmp_path_factory):
    return learn(bundle, tmp_path_factory.mktemp("learned"))


def join(fleet, home):
    """Lets the devices of a fleet join, each with the keys that it has."""
    members.begin(fleet.folder)
    for name in DEVICES:
        card = make_card(name, load_key(home / f"{name}.key").public_key().public_bytes_raw().hex(),
                         private_key(home / f"{name}.sign"))
        members.ask(fleet.folder, name, card.key, card.secret, 1, card.signature)
        members.approve(fleet.folder, name, 2)


def changed_facts(path, **facts):
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_devices_that_joined_sign_what_a_sync_brings(bundle, learned, tmp_path):
    """Answers and shares that others wrote, changed, repeated or cut off do not count."""
    fleet = Fleet(bundle, learned[1], tmp_path, signing=DEVICES)
    join(fleet, tmp_path)
    fleet.begin(threshold=3)
    assert not (fleet.folder / "keys").exists()
    fleet.answer("abcd")
    place = newest(fleet.folder)
    task = open_task(place.task, bundle)
    circle = circle_of(task)
    sender = sender_of(fleet.folder, task)
    answer = place.answers / "d"
    shutil.copytree(answer, tmp_path / "whole")

    def refused(spoil, match):
        shutil.rmtree(answer)
        shutil.copytree(tmp_path / "whole", answer)
        spoil()
        with pytest.raises(EdgetuneError, match=match):
            open_masked(answer, task, circle, sender)

    def by(key):
        changed(answer, "masked", words=lambda words: words ^ 1)
        sign(answer / "masked.json", key)

    key = private_key(tmp_path / "d.sign")
    stranger = Ed25519PrivateKey.generate()
    refused((answer / "manifest.sig").unlink, "manifest.sig is missing, and the key ")
    refused(lambda: by(stranger), f"is of the key {stranger.public_key().public_bytes_raw().hex()[:16]}")
    refused(lambda: changed(answer, "masked", words=lambda words: words ^ 1), "not the signature of the manifest")
    refused(lambda: shutil.copytree(place.answers / "a", answer, dirs_exist_ok=True), "had to sign")
    refused(lambda: (answer / "masked.safetensors").write_bytes(b""), "has the SHA-256")
    refused(lambda: (answer / "manifest.sig").write_text("{"), "is no Ed25519 signature")
    refused(lambda: (changed_facts(answer / "masked.json", number=(circle.names.index("a"))),
                     sign(answer / "masked.json", key)), "is not of d")
    refused(lambda: members.revoke(fleet.folder, "d", 3), "the device d was revoked")
    with pytest.raises(EdgetuneError, match="no device 'x' has joined"):
        sender("x")
    fleet.lead(seconds=0.0).end_round()
    fleet.reveal("abc")
    changed(place.revealed / "c", "revealed", own=lambda own: own ^ 1)  # else c would be named as one that lies
    ended = fleet.lead(seconds=0.0).end_round()
    assert ended.dropped == "2 devices have revealed their shares, and 3 must"
    assert {one.device: one.reason for one in ended.left_out} == {
        "c": "manifest.sig is not the signature of the manifest next to it"}


def test_an_answer_by_the_key_before_counts_until_the_round_ends(bundle, learned, tmp_path):
    fleet = Fleet(bundle, learned[1], tmp_path, signing=DEVICES)
    join(fleet, tmp_path)
    fleet.begin()

    def rotate(name):
        key = Ed25519PrivateKey.generate()
        member = members.read_member(fleet.folder, name)
        card = make_card(name, member.secret, key)
        members.rotate(fleet.folder, name, card.key, 3, card.signature, newest_number(fleet.folder))
        return key

    fleet.answer("abcd")
    (tmp_path / "a.sign").unlink()
    write_private(tmp_path / "a.sign", rotate("a"))
    rotate("b")
    assert fleet.lead().end_round() is None
    assert newest(fleet.folder).is_requested
    fleet.reveal("abcd")
    assert fleet.lead().end_round().record.devices == 4
    check_sum(fleet.folder, bundle, learned[0], "abcd")
    for name in DEVICES:
        assert fleet.members[name].answer(CALLS).place.number == 2
    fleet.lead(seconds=0.0).end_round()  # b signs by the key before
    place = newest(fleet.folder)
    circle = circle_of(task := open_task(place.task, bundle))
    assert {circle.names[number] for number in open_request(place.request, task, circle).answered} == {*"acd"}


def test_the_command_in_a_folder_that_a_sync_brings(bundle, learned, tiny_llama, tmp_path, monkeypatch):
    """Three devices, none of which sees who has joined."""
    folder, seen = tmp_path / "served", tmp_path / "seen"
    folder.mkdir()
    seen.mkdir()
    with daemon(tiny_llama, tmp_path / "state", fleet=str(folder)) as running:
        for name in "abc":
            monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / name))
            ask_to_join(running.url, invites.invite(folder, 2**31), name)
            members.approve(folder, name, 1)
        make_task(bundle, folder / "round-0001" / "task", CONFIG, OPTIONS, secret=Secret.of(cards_of(folder)[0], None))
        (seen / "round-0001").symlink_to(folder / "round-0001")
        words = ("fleet", "follow", seen, "--model", bundle.path, "--joined", running.url, "--secret", running.url,
                 "--eval", "none", "--threads", 1, "--no-govern", "--rounds", 1, "--every", 0.2)
        devices = [Popen([sys.executable, "-m", "edgetune", *map(str, words), learned[1][name]], stdout=PIPE, text=True,
                         env={**os.environ, "XDG_STATE_HOME": str(tmp_path / name)}) for name in "abc"]
        try:
            lead = Lead(folder, bundle, None, 1e9, None)
            end = time.monotonic() + 240
            while (ended := lead.end_round()) is None and time.monotonic() < end:
                time.sleep(0.2)
            said = [device.communicate(timeout=60)[0] for device in devices]
        finally:
            for device in devices:
                device.kill()
        keys = {name: json.loads((folder / "round-0001" / step / name / "manifest.sig").read_text())["public_key"]
                for name in "abc" for step in ("answers", "revealed")}
    assert [device.returncode for device in devices] == [0, 0, 0], said
    assert (ended.record.devices, ended.left_out) == (3, [])
    assert keys == {name: member.key for name, member in members.read_members(folder)[0].items()}
