"""Devices that join a fleet: codes, approvals and signed requests, put to a daemon."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, replace

import httpx
import pytest
from commands import run
from daemons import daemon
from hypothesis import given
from hypothesis import strategies as st

from edgetune.daemon.client import Client
from edgetune.daemon.keys import add_key
from edgetune.errors import EdgetuneError, FormatError, MismatchError, NotFoundError, UsageError
from edgetune.parts.fleet.membership import invites, members
from edgetune.parts.fleet.membership.device import joined
from edgetune.parts.fleet.membership.lead import Signing, ask_to_join, open_lead, rotate, state_of
from edgetune.parts.fleet.membership.requests import WINDOW, Checker, signed
from edgetune.parts.fleet.rollout.http import LeadByHttp
from edgetune.parts.fleet.rollout.reports import DeviceFile, read_devices, write_device
from edgetune.parts.fleet.uptime import Moment

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

KEY = "0" * 64
OTHER = "2" * 64


@pytest.fixture(scope="module")
def served(tiny_llama, tmp_path_factory):
    """(the folder of a fleet, the daemon that serves it, which asks for keys; one of its keys)"""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "served").mkdir()
    key = add_key(folder / "keys", "owner")
    with daemon(tiny_llama, folder / "state", fleet=str(folder / "served"), key_file=str(folder / "keys")) as lead:
        yield folder / "served", lead.url, key


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def code_of(folder, *options):
    return json.loads(run("fleet", "invite", folder, *options, "--json"))["code"]


def test_a_code_is_of_one_device_and_ends(tmp_path):
    with pytest.raises(UsageError, match="there is no folder"):
        invites.invite(tmp_path / "none", 0)
    code = invites.invite(tmp_path, 1000, 60)
    assert invites.join(tmp_path, code.lower().replace("-", " "), "a", KEY, 1010).state == "waiting"
    assert invites.join(tmp_path, code, "a", KEY, 1010) == members.read_member(tmp_path, "a")  # its answer was lost
    with pytest.raises(MismatchError, match="has been used"):
        invites.join(tmp_path, code, "b", OTHER, 1010)
    again = invites.invite(tmp_path, 1000, 60)
    with pytest.raises(MismatchError, match="another device has the name a"):
        invites.join(tmp_path, again, "a", OTHER, 1010)
    for name in ("", "../x", "a.b", "x" * 65):
        with pytest.raises(UsageError, match="the device is named"):
            invites.join(tmp_path, again, name, OTHER, 1010)
    with pytest.raises(UsageError, match="no public key"):
        invites.join(tmp_path, again, "b", "0" * 63, 1010)
    assert invites.join(tmp_path, again, "b", OTHER, 1010).device == "b"
    assert (tmp_path / "invites").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("now", "boot", "seconds", "is_valid"), [
    (1059, "one", 64.0, True), (10**10, "one", 64.0, True), (0, "one", 64.0, True),  # its date is set, on or back
    (1060, "one", 65.0, False), (0, "one", 65.0, False), (1010, "one", 65.0, False),
    (1059, "two", 1.0, True), (1060, "two", 1.0, False), (999, "two", 1.0, False)])  # the machine was started again
def test_a_code_ends_by_a_clock_that_nobody_sets(tmp_path, now, boot, seconds, is_valid):
    code = invites.invite(tmp_path, 1000, 60, at=Moment("one", 5.0))
    if is_valid:
        assert invites.join(tmp_path, code, "b", OTHER, now, at=Moment(boot, seconds)).state == "waiting"
    else:
        with pytest.raises(MismatchError, match="has expired"):
            invites.join(tmp_path, code, "b", OTHER, now, at=Moment(boot, seconds))
    invites.invite(tmp_path, now, 60, at=Moment(boot, seconds))
    assert len([*(tmp_path / "invites").iterdir()]) == 1 + is_valid  # an old one is removed


def test_a_code_of_an_earlier_edgetune_ends_by_its_date(tmp_path):
    code = invites.invite(tmp_path, 1000, 60)
    path, = (tmp_path / "invites").iterdir()
    found = json.loads(path.read_text())
    path.write_text(json.dumps({name: found[name] for name in ("secret", "expires_at", "wrong", "key")}))
    with pytest.raises(MismatchError, match="has expired"):
        invites.join(tmp_path, code, "a", KEY, 1060)
    assert invites.join(tmp_path, code, "a", KEY, 1059).device == "a"


def test_a_code_ends_after_five_wrong_guesses(tmp_path):
    code, other = (invites.invite(tmp_path, 0) for _ in range(2))
    wrong = code[:-1] + ("A" if code[-1] != "A" else "B")
    for guess in (wrong, "", "ABCD", "XXXX-XXXX-XXXX", code[:4]) + (wrong,) * 3:
        with pytest.raises(MismatchError, match="none of this fleet's"):
            invites.join(tmp_path, guess, "a", KEY, 0)
    with pytest.raises(MismatchError, match="none of this fleet's"):
        invites.join(tmp_path, code, "a", KEY, 0)
    assert invites.join(tmp_path, other, "a", KEY, 0).device == "a"


def test_a_person_approves_and_revokes(tmp_path):
    assert members.reason_against(tmp_path, "a") == ""  # no device had to join
    members.begin(tmp_path)
    assert "no device 'a' has joined" in members.reason_against(tmp_path, "a")
    members.ask(tmp_path, "a", KEY, 1)
    assert "waits for its approval" in members.reason_against(tmp_path, "a")
    run("fleet", "approve", tmp_path, "a")
    assert members.reason_against(tmp_path, "a") == ""
    assert "a approved 0000 0000 0000 0000 1970" in " ".join(run("fleet", "members", tmp_path).replace("│", "").split())
    run("fleet", "revoke", tmp_path, "a")
    assert "was revoked" in members.reason_against(tmp_path, "a")
    assert "was revoked" in run("fleet", "approve", tmp_path, "a", code=2)
    with pytest.raises(MismatchError, match="with a new key"):
        members.ask(tmp_path, "a", KEY, 2)
    assert members.ask(tmp_path, "a", OTHER, 2).state == "waiting"
    (tmp_path / "members" / "b.json").write_text('{"device": "a"}')
    (tmp_path / "members" / "c.json").write_text("[" * 100_000)
    found, wrong = members.read_members(tmp_path)
    assert [*found] == ["a"]
    assert len(wrong) == 2
    with pytest.raises(NotFoundError):
        members.approve(tmp_path, "../members/a", 0)


def test_requests_count_once_and_in_their_time(tmp_path):
    key = Ed25519PrivateKey.generate()
    members.ask(tmp_path, "a", key.public_key().public_bytes_raw().hex(), 1)
    members.approve(tmp_path, "a", 2)
    checker = Checker(tmp_path)
    empty = "0" * 64
    now = time.time()

    def asked(method="GET", path="/v1/fleet/round", at=now, by=key, device="a", digest=empty):
        return signed(by, device, method, path, digest, at)

    def check(authorization, method="GET", path="/v1/fleet/round"):
        return checker.sender(authorization, method, path, now)

    assert check(asked())[0].device == "a"
    with pytest.raises(MismatchError, match="was sent before"):
        check(asked())
    assert check(asked(path="/behind/a/proxy/v1/fleet/round", at=now + 1))[1] == empty
    for made, method, path in ((asked(at=now + 2), "PUT", "/v1/fleet/round"),
                               (asked(at=now + 2), "GET", "/v1/fleet/order"),
                               (asked(at=now + 2, by=Ed25519PrivateKey.generate()), "GET", "/v1/fleet/round"),
                               (asked(at=now + 2).replace(empty, "1" * 64), "GET", "/v1/fleet/round")):
        with pytest.raises(MismatchError, match="not signed by the key of a"):
            check(made, method, path)
    for at in (now - WINDOW - 1, now + WINDOW + 1):
        with pytest.raises(UsageError, match="clock is 301 seconds"):
            check(asked(at=at))
    with pytest.raises(NotFoundError):
        check(asked(device="b"))


@given(st.text() | st.from_regex(r"Device [a-z]{1,9} \d{13} [0-9a-f]{64} [0-9a-f]{128}", fullmatch=True))
def test_any_signature_is_refused_in_a_sentence(tmp_path_factory, text):
    with pytest.raises(EdgetuneError):
        Checker(tmp_path_factory.getbasetemp()).sender(text, "GET", "/v1/fleet/round", time.time())


def test_a_device_joins_by_http(served):
    folder, url, key = served
    with Client(url, key) as owner:
        before = owner.get("/v1/fleet/members")
        assert (before["joined"], before["data"]) == (False, [])
        with pytest.raises(EdgetuneError, match="none of this fleet's"):
            ask_to_join(url, "ABCD-EFGH-JKLM", "kitchen")
        assert joined(url) is None
        code = owner.post("/v1/fleet/invites", {"seconds": 60})["code"]
        ask_to_join(url, code, "kitchen")
        with pytest.raises(UsageError, match="has joined as kitchen, and is waiting"):
            ask_to_join(url, code_of(folder), "kitchen")
        own = joined(url)
        assert state_of(url, own)["state"] == "waiting"
        with open_lead(url, None, "")[0] as client:
            with pytest.raises(UsageError, match="waits for its approval"):
                client.get("/v1/fleet/order")
            assert owner.post("/v1/fleet/members/kitchen/approve")["state"] == "approved"
            assert client.get("/v1/fleet/order")["rollout"] == ""
            for path in ("/v1/fleet/members", "/v1/models", "/healthz"):  # no key of the daemon
                with pytest.raises(UsageError, match="a device may not ask"):
                    client.get(path)
            with pytest.raises(UsageError, match="a device may not ask"):
                client.post("/v1/fleet/members/kitchen/approve")
            with pytest.raises(UsageError, match="a device speaks of itself alone"):
                client.get("/v1/fleet/members/shed")
            old = own.key()
            shown = run("fleet", "rotate", url)
            assert members.shown_key(owner.get("/v1/fleet/members/kitchen")["key"]) in shown
            assert client.get("/v1/fleet/order")["rollout"] == ""  # an open client, as `follow` has, takes the new one
        with (Client(url, sign=Signing("kitchen", lambda: old)) as client,
              pytest.raises(UsageError, match="not signed by the key of kitchen")):
            client.get("/v1/fleet/order")
        assert old.private_bytes_raw() != own.key().private_bytes_raw()
        own.next_key()  # the answer to a rotation is lost
        with Client(url, sign=Signing("kitchen", own.key)) as client:
            client.post("/v1/fleet/members/kitchen/rotate",
                        {"key": own.next_key().public_key().public_bytes_raw().hex()})
        with pytest.raises(UsageError, match="not signed by the key"):
            state_of(url, own)
        assert rotate(url, own)["key"] == state_of(url, own)["key"]
        owner.post("/v1/fleet/members/kitchen/revoke")
        with open_lead(url, None, "")[0] as client, pytest.raises(UsageError, match="kitchen was revoked"):
            client.get("/v1/fleet/order")
        assert "refused kitchen" in run("fleet", "join", url, code=1)
        ask_to_join(url, code_of(folder), "kitchen")  # with new keys
        assert state_of(url, joined(url))["state"] == "waiting"
        owner.post("/v1/fleet/members/kitchen/approve")
        assert "is approved" in run("fleet", "join", url)
    assert "not asked to join" in run("fleet", "join", "http://127.0.0.1:1", code=2)


def test_strangers_are_refused(served):
    folder, url, key = served
    members.begin(folder)
    with httpx.Client(base_url=url) as http:
        for path in ("members", "members/kitchen", "order"):
            assert http.get(f"/v1/fleet/{path}").status_code == 401
        for path in ("invites", "members/kitchen/approve", "members/kitchen/rotate"):
            assert http.post(f"/v1/fleet/{path}", json={}).status_code == 401
        owner = {"Authorization": f"Bearer {key}"}
        assert http.post("/v1/fleet/members/kitchen/rotate", json={"key": KEY}, headers=owner).status_code == 400
        report = http.put("/v1/fleet/devices/cellar", json={
            "device": "cellar", "at": 1, "model": "", "rollout": "", "execution": "none", "finished": "none",
            "reason": "", "adapter": "", "verdict": {}, "installed": [], "superseded": [], "kept": [], "version": 1,
            "edgetune": "0.1.0"}, headers=owner)
        assert report.status_code == 400
        assert "not signed by a device" in report.json()["error"]["message"]
        assert http.post("/v1/fleet/invites", json={"seconds": 0}, headers=owner).status_code == 400
        for body in (b"", b"{", b"[]", b'{"code": 1}', b'{"code": "A", "device": "a", "key": ""}',
                     json.dumps({"code": "x" * 65, "device": "a", "key": ""}).encode()):
            said = http.post("/v1/fleet/join", content=body)
            assert said.status_code == 400
            assert said.json()["error"]["message"]


def test_a_body_that_was_changed_on_its_way_is_refused(served):
    folder, url, _ = served
    key = Ed25519PrivateKey.generate()
    members.begin(folder)
    members.ask(folder, "hall", key.public_key().public_bytes_raw().hex(), 1)
    members.approve(folder, "hall", 2)
    sent = []

    def changed(request):
        Signing("hall", lambda: key)(request)
        sent.append(request.headers["Authorization"])
        other = httpx.Request(request.method, request.url, json={"key": OTHER})
        other.headers["Authorization"] = sent[-1]
        return other

    with Client(url, sign=changed) as client, pytest.raises(UsageError, match="not the one that was signed"):
        client.post("/v1/fleet/members/hall/rotate", {"key": KEY})
    with httpx.Client(base_url=url) as http:
        again = http.post("/v1/fleet/members/hall/rotate", json={"key": KEY}, headers={"Authorization": sent[0]})
        assert again.status_code == 403
        assert "was sent before" in again.json()["error"]["message"]
    assert members.read_member(folder, "hall").rotated_at == 0


def test_reports_of_approved_devices_count(served):
    folder, url, _ = served
    ask_to_join(url, code_of(folder), "porch")
    report = DeviceFile("porch", execution="rejected")
    with open_lead(url, None, "")[0] as client:
        with pytest.raises(UsageError, match="waits for its approval"):
            LeadByHttp(client).report(report)
        members.approve(folder, "porch", 1)
        LeadByHttp(client).report(report)
        with pytest.raises(UsageError, match="a device speaks of itself alone"):
            LeadByHttp(client).report(replace(report, device="hall"))
        with pytest.raises(UsageError, match="the report of porch is not signed by its key"):
            client.put("/v1/fleet/devices/porch", asdict(report))
    write_device(folder, DeviceFile("stranger"))  # as a sync would bring it
    found = read_devices(folder)[0]
    assert replace(found.pop("porch"), signature="") == report
    assert found == {}
    members.revoke(folder, "porch", 2)
    found, wrong = read_devices(folder)
    assert found == {}
    assert sorted(wrong) == ["no device 'stranger' has joined the fleet", "the device porch was revoked"]


def test_a_damaged_record_of_the_device_is_named(served):
    folder, url, _ = served
    members.begin(folder)
    own = ask_to_join(url, code_of(folder), "attic")
    assert {path.name: path.stat().st_mode & 0o77 for path in own.folder.glob("*.pem")} == {"signing.pem": 0}
    (own.folder / "device.json").write_text("{}")
    with pytest.raises(FormatError, match="join again"):
        joined(url)


def test_a_device_that_joined_with_two_keys_takes_part(served, tmp_path):
    """Earlier versions made a second key and its signature, for sums in secret, on the device and at the daemon."""
    folder, url, _ = served
    key = Ed25519PrivateKey.generate()
    own = tmp_path / "edgetune" / "fleet-joined" / hashlib.sha256(url.encode()).hexdigest()[:16]
    own.mkdir(parents=True)
    for name, private in (("signing", key), ("secret", X25519PrivateKey.generate())):
        (own / f"{name}.pem").write_bytes(private.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8,
                                                                forms.NoEncryption()))
    (own / "device.json").write_text(json.dumps({"url": url, "device": "loft"}))
    members.begin(folder)
    (folder / "members" / "loft.json").write_text(json.dumps({
        "asked_at": 1, "decided_at": 2, "device": "loft", "edgetune": "0.1.0",
        "key": key.public_key().public_bytes_raw().hex(), "key_before": "", "rotated_at": 0, "rotated_in": 0,
        "secret": "1" * 64, "signature": "a" * 128, "state": "approved", "version": 1}))
    assert "loft approved" in " ".join(run("fleet", "members", folder).replace("│", "").split())
    with open_lead(url, None, "")[0] as client:
        assert client.get("/v1/fleet/order")["rollout"] == ""
    assert rotate(url, joined(url))["key"] == joined(url).public() != key.public_key().public_bytes_raw().hex()
    assert members.revoke(folder, "loft", 3).state == "revoked"
