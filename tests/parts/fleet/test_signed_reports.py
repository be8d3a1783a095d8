"""Reports of devices that joined, in a folder: each is signed, and an older one counts no more."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from commands import run
from daemons import daemon
from fleets import EVALUATION, write_rounds

from edgetune.errors import MismatchError, UsageError
from edgetune.parts.fleet.membership import invites, members
from edgetune.parts.fleet.membership.lead import ask_to_join
from edgetune.parts.fleet.rollout import rings
from edgetune.parts.fleet.rollout.folder import begin, newest_order, step
from edgetune.parts.fleet.rollout.http import take_report
from edgetune.parts.fleet.rollout.reports import (
    DeviceFile,
    read_device,
    read_devices,
    reports_of,
    sign,
    unsigned,
    write_device,
)
from edgetune.parts.fleet.rollout.rings import RingPlan

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FAILED = {"execution": rings.CLOSED, "finished": rings.FAILURE}
DONE = {"execution": rings.CLOSED, "finished": rings.SUCCESS, "verdict": {"p": 0.01, "wins": 6}}


@pytest.fixture(scope="module")
def adapter(bundle, tmp_path_factory):
    return write_rounds(bundle, tmp_path_factory.mktemp("rounds"), 1)


class Fleet:
    """A folder with a roll-out to the devices a, b and c, which joined, one after the other."""

    def __init__(self, folder, adapter):
        self.folder = folder
        self.keys = {}
        members.begin(folder)
        for name in "abc":
            self.join(name)
            self.report(name)
        self.adapter = adapter
        self.begin()

    def begin(self):
        self.rollout = begin(self.folder, self.adapter, RingPlan(("1", "2", "all"), error=0.0), EVALUATION, 1,
                             first=["a", "b"]).facts.rollout

    def join(self, name):
        self.keys[name] = Ed25519PrivateKey.generate()
        members.ask(self.folder, name, self.public(name), 1)
        members.approve(self.folder, name, 2)

    def public(self, name):
        return self.keys[name].public_key().public_bytes_raw().hex()

    def signed(self, name, number=1, **facts):
        return sign(DeviceFile(name, number=number, **facts), self.keys[name])

    def report(self, name, number=1, **facts):
        write_device(self.folder, self.signed(name, number, **facts))

    def step(self, change=""):
        """The state, the reports that count, and what is left out."""
        order, devices, wrong = step(self.folder, 2, change)
        return order.state, devices, wrong


@pytest.fixture
def fleet(adapter, tmp_path):
    return Fleet(tmp_path, adapter)


def test_a_forged_report_moves_no_ring(fleet):
    write_device(fleet.folder, DeviceFile("a", number=9, rollout=fleet.rollout, **FAILED))
    write_device(fleet.folder, sign(DeviceFile("b", number=9, rollout=fleet.rollout, **FAILED), fleet.keys["a"]))
    state, devices, wrong = fleet.step()
    assert (state.ring, state.status, [*devices]) == (0, rings.RUNNING, ["c"])
    assert wrong == [f"the report of {name} is not signed by its key, which begins with {fleet.public(name):.16}"
                     for name in "ab"]
    fleet.report("a", 2, rollout=fleet.rollout, **DONE)
    assert fleet.step()[0].ring == 1
    shutil.copyfile(fleet.folder / "devices" / "a.json", fleet.folder / "devices" / "b.json")
    state, _, wrong = fleet.step()
    assert (state.ring, state.status) == (1, rings.RUNNING)
    assert wrong == [f"{fleet.folder / 'devices' / 'b.json'} is of the device 'a', version 1"]
    fleet.report("b", 2, rollout=fleet.rollout, **FAILED)
    assert fleet.step()[0].status == rings.STOPPED


def test_every_field_is_signed(fleet):
    whole = fleet.signed("a", 7, rollout=fleet.rollout, at=1, installed=["0" * 64], kind="x", **DONE)
    assert unsigned(whole, fleet.public("a")) == ""
    changes = {"device": "b", "at": 2, "model": "x", "rollout": "", "execution": "rejected", "finished": "failure",
               "reason": "x", "adapter": "x", "verdict": {"p": 0.02, "wins": 6}, "installed": [], "superseded": ["x"],
               "kept": ["x"], "version": 2, "edgetune": "x", "kind": "", "base": "x", "active": "x", "number": 8,
               "signature": "0" * 128}
    assert changes.keys() == vars(whole).keys()
    for name, value in changes.items():
        assert "is not signed" in unsigned(replace(whole, **{name: value}), fleet.public("a")), name
    for signature in ("", "x", whole.signature[:-2]):
        assert "is not signed" in unsigned(replace(whole, signature=signature), fleet.public("a"))
    raw = bytes.fromhex(whole.signature)
    facts = {name: value for name, value in vars(whole).items() if value and name != "signature"}
    fleet.keys["a"].public_key().verify(raw, b"edgetune fleet report\n" + json.dumps(facts, sort_keys=True).encode()
                                        + b"\n")


def test_an_older_report_does_not_undo_a_newer_one(fleet):
    path = fleet.folder / "devices" / "a.json"
    before = path.read_bytes()
    fleet.report("a", 2, rollout=fleet.rollout, **FAILED)
    failed = path.read_bytes()
    fleet.report("a", 3, rollout=fleet.rollout, execution=rings.REJECTED)
    assert fleet.step()[1]["a"].execution == rings.REJECTED
    for other in (failed, before, failed[:-9], b""):  # put back, cut off
        path.write_bytes(other)
        state, devices, wrong = fleet.step()
        assert (state.status, devices["a"].execution, len(wrong)) == (rings.PAUSED, rings.REJECTED, 1), other
    assert wrong[0].startswith(f"{path} is damaged")
    path.write_bytes(failed)
    assert fleet.step()[2] == ["the report of a is older than one that counted"]
    assert "left out: the report of a is older than one" in run("fleet", "advance", fleet.folder)
    path.unlink()
    state, devices, wrong = fleet.step()
    assert (devices["a"].execution, wrong) == (rings.REJECTED, [])
    kept = fleet.folder / "members" / "reports" / "a.json"
    counted = kept.read_bytes()
    kept.write_bytes(counted[:-9])
    _, devices, wrong = fleet.step()
    assert ("a" in devices, len(wrong)) == (False, 1)
    assert wrong[0].startswith(f"{kept} is damaged")
    kept.write_bytes(counted)
    fleet.step(rings.STOP)
    fleet.begin()
    path.write_bytes(failed)  # of the roll-out before
    state, devices, _ = fleet.step()
    assert (state.status, reports_of(devices, fleet.rollout)) == (rings.RUNNING, {})
    write_device(fleet.folder, replace(read_device(fleet.folder, "a"), rollout=fleet.rollout))
    assert fleet.step()[0].status == rings.RUNNING
    assert (fleet.folder / "members").stat().st_mode & 0o77 == 0


def test_a_device_that_changes_its_key_and_one_that_takes_a_name(fleet):
    fleet.report("a", 5, rollout=fleet.rollout, execution=rings.PROCEEDING)
    fleet.step()
    old = fleet.signed("a", 6, rollout=fleet.rollout, **FAILED)
    fleet.keys["a"] = Ed25519PrivateKey.generate()
    members.rotate(fleet.folder, "a", fleet.public("a"), 3)
    write_device(fleet.folder, old)
    state, devices, wrong = fleet.step()
    assert (state.status, devices["a"].number, len(wrong)) == (rings.RUNNING, 5, 1)
    fleet.report("a", 6, rollout=fleet.rollout, **DONE)
    assert fleet.step()[0].ring == 1
    members.revoke(fleet.folder, "a", 4)
    assert fleet.step()[2] == ["the device a was revoked"]
    fleet.join("a")
    found, wrong = read_devices(fleet.folder)
    assert [*found] == ["b", "c"]
    assert "the report of a is not signed" in wrong[0]
    fleet.report("a", 1)
    assert read_devices(fleet.folder)[0]["a"].number == 1
    with pytest.raises(MismatchError, match="the report of b is not signed"):
        take_report(fleet.folder, "b", vars(DeviceFile("b")))


def test_a_folder_that_no_device_joins_trusts_all_who_write(adapter, tmp_path):
    write_device(tmp_path, DeviceFile("a", number=5))
    write_device(tmp_path, replace(DeviceFile("b"), signature="0" * 128))
    order = begin(tmp_path, adapter, RingPlan(("all",)), EVALUATION, 1)
    write_device(tmp_path, DeviceFile("a", rollout=order.facts.rollout, **FAILED))
    assert step(tmp_path, 2)[0].state.status == rings.STOPPED
    assert not (tmp_path / "members").exists()


def test_the_command(tiny_llama, adapter, tmp_path, monkeypatch):
    """The daemon of a device, which serves the fleet, too."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "served"
    folder.mkdir()
    path = folder / "devices" / "kitchen.json"
    with daemon(tiny_llama, tmp_path / "state", fleet=str(folder)) as running:
        url = running.url

        def apply(*options, code=0):
            return run("fleet", "apply", *options, "--url", url, code=code)

        assert "has not joined" in apply(folder, "--joined", url, code=2)
        ask_to_join(url, invites.invite(folder, 2**31), "kitchen")
        members.approve(folder, "kitchen", 1)
        assert "is a URL, where the device signs by itself" in apply(url, "--joined", url, code=2)
        apply(folder, "--device", "kitchen")  # unsigned
        with pytest.raises(UsageError, match="no report of a device counts: the report of kitchen is not signed"):
            begin(folder, adapter, RingPlan(), EVALUATION, 1)
        apply(folder, "--joined", url)
        first = path.read_bytes()
        run("fleet", "rollout", adapter, folder)
        assert "kitchen: rejected: the adapter is of the model" in apply(folder, "--joined", url)
        forged = replace(DeviceFile("kitchen"), rollout=newest_order(folder).facts.rollout, adapter="x", **DONE)
        write_device(folder, forged)
        assert "left out: the report of kitchen is not signed by its key" in run("fleet", "advance", folder)
        assert "excluded" in run("fleet", "status", folder)
        apply(folder, "--joined", url)  # it knows itself what it has done
        assert read_device(folder, "kitchen").execution == "rejected"
        assert json.loads(run("fleet", "advance", folder, "--json"))["rings"][0]["refused"] == 1
        path.write_bytes(first)
        found = json.loads(run("fleet", "advance", folder, "--json"))
        assert (found["rings"][0]["refused"], found["unreadable"]) == (1, [
            "the report of kitchen is older than one that counted"])
        run("fleet", "rotate", url)
        apply(url)  # by HTTP, from the same file of its own
        assert read_device(folder, "kitchen").execution == "rejected"
        assert read_devices(folder)[1] == []
