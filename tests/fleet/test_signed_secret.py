"""Rounds that are summed in secret in a folder, of devices that joined: each signs what a sync brings."""

from __future__ import annotations

import json
import shutil

import pytest
from secret_fleets import CALLS, DEVICES, Fleet, changed, check_sum, learn

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgetune.errors import EdgetuneError
from edgetune.fleet.carriers.places import newest, newest_number
from edgetune.fleet.carriers.secret_lead import sender_of
from edgetune.fleet.joining import members
from edgetune.fleet.rounds.task import open_task
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
