"""Roll-outs through the commands, to real daemons on a tiny model, in one folder."""

from __future__ import annotations

import json
import shutil

import pytest
from commands import run
from rollouts import on_device, write_adapters

from edgetune.daemon.client import Client
from edgetune.errors import EdgetuneError, FormatError, MismatchError, UsageError
from edgetune.formats.signature import TRUSTED
from edgetune.parts.fleet.rollout import rings
from edgetune.parts.fleet.rollout.apply import apply
from edgetune.parts.fleet.rollout.artifact import open_artifact, write_artifact
from edgetune.parts.fleet.rollout.daemons import DaemonByHttp
from edgetune.parts.fleet.rollout.folder import newest_order
from edgetune.parts.fleet.rollout.reports import read_device, read_devices


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    return write_adapters(tiny_llama, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def fleet(tiny_llama, tmp_path_factory):
    """Two daemons, where "on" is right in one and "off" in the other, and a third without feedback."""
    folder = tmp_path_factory.mktemp("fleet")
    with on_device(tiny_llama, folder / "a", "on") as a, on_device(tiny_llama, folder / "b", "off") as b, \
            on_device(tiny_llama, folder / "c", "") as c:
        yield {"a": a, "b": b, "c": c}


@pytest.fixture(autouse=True)
def clean(fleet):
    yield
    for running in fleet.values():
        running.service.adapters.promote(None, "after a test")
        for found in running.service.adapters.list():
            running.service.adapters.delete(found.id)


def look(fleet, folder, device):
    said = run("fleet", "apply", folder, "--device", device, "--url", fleet[device].url, "--json")
    return json.loads(said)


def advance(folder, *options):
    return json.loads(run("fleet", "advance", folder, *options, "--json"))


def active(running):
    return running.service.adapters.serving


@pytest.mark.dev
def test_an_adapter_reaches_a_fleet_and_is_undone_with_one_command(fleet, made, tmp_path):
    said = run("fleet", "rollout", made / "on", tmp_path, code=2)
    assert "no device has reported to this folder" in said
    assert "nothing was rolled out" in run("fleet", "advance", tmp_path, code=2)
    for device in fleet:
        assert look(fleet, tmp_path, device)["execution"] == "none"
    said = run("fleet", "rollout", made / "on", tmp_path, "--rings", "1,2,all", "--first", "a", "--first", "b",
               "--probation", "0s", "--success", "50%")
    assert "is running" in said
    assert look(fleet, tmp_path, "b")["execution"] == "none"  # not its turn
    assert active(fleet["b"]) is None
    found = look(fleet, tmp_path, "a")
    assert (found["execution"], found["finished"], active(fleet["a"])) == ("closed", "success", found["adapter"])
    assert (found["verdict"]["wins"], found["verdict"]["losses"]) == (6, 0)
    again = look(fleet, tmp_path, "a")  # a second look does nothing
    assert again == {**found, "at": again["at"], "number": again["number"]}
    assert again["number"] > found["number"]
    assert len(fleet["a"].service.adapters.list()) == 1
    assert advance(tmp_path)["ring"] == 2
    found = look(fleet, tmp_path, "b")
    assert (found["execution"], active(fleet["b"])) == ("rejected", None)
    assert "not surely better" in found["reason"]
    assert fleet["b"].service.adapters.list() == []  # what was refused leaves no trace
    assert advance(tmp_path)["status"] == "paused"
    said = run("fleet", "advance", tmp_path, "--resume")
    assert "b: rejected: not surely better" in said
    found = look(fleet, tmp_path, "c")
    assert found["reason"].startswith("0 questions are held out on this device, and 4 are needed to evaluate")
    assert advance(tmp_path)["status"] == "paused"
    assert "is running: a person" not in run("fleet", "advance", tmp_path, "--stop")
    assert "the roll-out is stopped" in run("fleet", "advance", tmp_path, "--resume", code=2)
    assert active(fleet["a"])
    assert advance(tmp_path, "--undo")["status"] == "undoing"
    for device in fleet:
        look(fleet, tmp_path, device)
    assert read_device(tmp_path, "a").report == rings.RingReport("canceled", "success",
                                                             "the adapter before is active again")
    assert all(active(running) is None and not running.service.adapters.list() for running in fleet.values())
    assert advance(tmp_path)["status"] == "undone"


def begin(fleet, folder, adapter, *options):
    for device in fleet:
        look(fleet, folder, device)
    run("fleet", "rollout", adapter, folder, "--rings", "all", *options)


def test_bad_ratings_stop_it(fleet, made, tmp_path):
    begin(fleet, tmp_path, made / "on", "--if-none", "canary", "--bad-ratings", 2, "--first", "c")
    found = look(fleet, tmp_path, "c")
    assert (found["execution"], found["finished"]) == ("proceeding", "none")
    assert "no held-out question was asked" in found["reason"]
    assert advance(tmp_path)["rings"][0]["trying"] == 1
    for number in range(2):
        fleet["c"].service.feedback.add(prompt=f"turn the fan {number}", answer="on", rating="down",
                                        model=found["adapter"])
    assert active(fleet["c"]) is None
    found = look(fleet, tmp_path, "c")
    assert (found["execution"], found["finished"], found["reason"]) == (
        "closed", "failure", "it was rolled back, with 2 bad ratings")
    assert advance(tmp_path)["status"] == "stopped"
    assert look(fleet, tmp_path, "a")["execution"] == "none"


def test_a_look_that_was_broken_off_is_continued(fleet, made, tmp_path, monkeypatch):
    begin(fleet, tmp_path, made / "on", "--first", "a")
    evaluate = DaemonByHttp.evaluate

    def broken(self, id, options):
        evaluate(self, id, options)
        raise KeyboardInterrupt

    monkeypatch.setattr(DaemonByHttp, "evaluate", broken)
    with Client(fleet["a"].url) as client, pytest.raises(KeyboardInterrupt):
        apply(tmp_path, "a", DaemonByHttp(client), 0)
    assert read_device(tmp_path, "a").execution == "downloaded"
    monkeypatch.undo()
    assert look(fleet, tmp_path, "a")["execution"] == "proceeding"
    assert [found.state for found in fleet["a"].service.adapters.list()] == ["serving"]
    fleet["a"].service.adapters.rollback("by hand")
    assert look(fleet, tmp_path, "a")["reason"] == "it was rolled back, with 0 bad ratings"
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(EdgetuneError, match="no daemon answers"):
        apply(tmp_path, "b", DaemonByHttp(nobody), 0)
    assert read_device(tmp_path, "b").execution == "none"


@pytest.mark.dev
def test_an_adapter_of_another_model_and_one_that_was_replaced(fleet, made, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(made / "on", own)
    begin(fleet, tmp_path, own, "--probation", "0s", "--success", "0%")
    for device in fleet:
        look(fleet, tmp_path, device)
    assert advance(tmp_path)["status"] == "finished"
    run("fleet", "rollout", made / "off", tmp_path, "--rings", "all", "--success", "0%", "--probation", "0s",
        "--if-none", "canary", "--required", "not-worse")
    assert newest_order(tmp_path).artifact.facts.supersedes == [open_artifact(next(
        (tmp_path / "rollouts").glob("*-own")) / "artifact").digest]
    assert look(fleet, tmp_path, "b")["execution"] == "closed"
    assert look(fleet, tmp_path, "a")["execution"] == "rejected"
    assert "is running" in run("fleet", "rollout", own, tmp_path, code=2)
    run("fleet", "advance", tmp_path, "--stop")
    run("fleet", "rollout", own, tmp_path, "--rings", "all")
    assert look(fleet, tmp_path, "b")["reason"] == "a later adapter replaced this one here"
    run("fleet", "advance", tmp_path, "--stop", "--json")


@pytest.mark.dev
def test_of_earlier_rollouts_the_last_adapters_are_kept(fleet, made, tmp_path):
    """Each takes memory. What is in the way of nothing is removed also where a roll-out ended before its evaluation."""
    ids = []
    look(fleet, tmp_path, "a")
    for number in range(4):
        folder = tmp_path / f"adapter{number}"
        shutil.copytree(made / "on", folder)
        run("fleet", "rollout", folder, tmp_path, "--rings", "all", "--probation", "0s", "--required", "not-worse")
        ids.append(look(fleet, tmp_path, "a")["adapter"])
        assert active(fleet["a"]) == ids[-1]
        assert advance(tmp_path)["status"] == "finished"
        fleet_now = sorted(found.id for found in fleet["a"].service.adapters.list())
        assert fleet_now == sorted(ids[-2:])
    assert read_device(tmp_path, "a").kept == ids[-2:]


def test_what_is_damaged_or_not_signed_is_refused(made, tmp_path, monkeypatch):
    cryptography = pytest.importorskip("cryptography")
    assert cryptography
    key = tmp_path / "key.pem"
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    private = Ed25519PrivateKey.generate()
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                          serialization.NoEncryption()))
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    (trusted / "fleet.pub").write_bytes(private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    write_artifact(tmp_path / "bare", made / "on")
    write_artifact(tmp_path / "signed", made / "on", key=key, supersedes=["a" * 64])
    assert open_artifact(tmp_path / "bare").digest == open_artifact(tmp_path / "signed").digest
    with pytest.raises(MismatchError, match="the order is about"):
        open_artifact(tmp_path / "bare", "f" * 64)
    monkeypatch.setenv(TRUSTED, str(trusted))
    assert open_artifact(tmp_path / "signed").facts.supersedes == ["a" * 64]
    with pytest.raises(MismatchError, match="is not signed"):
        open_artifact(tmp_path / "bare")
    shutil.copytree(tmp_path / "signed", tmp_path / "changed")
    facts = tmp_path / "changed" / "artifact.json"
    facts.write_text(facts.read_text().replace("a" * 64, "b" * 64))
    with pytest.raises(FormatError, match="is not the signature"):
        open_artifact(tmp_path / "changed")
    file = tmp_path / "signed" / "adapter" / "adapter.gguf"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FormatError, match="has the SHA-256"):
        open_artifact(tmp_path / "signed")
    monkeypatch.delenv(TRUSTED)
    write_artifact(tmp_path / "later", made / "on", least="9.0")
    with pytest.raises(UsageError, match=r"needs edgetune 9\.0"):
        open_artifact(tmp_path / "later")
    with pytest.raises(UsageError, match="has no adapter"):
        write_artifact(tmp_path / "none", tmp_path / "trusted")


def test_files_of_devices_that_cannot_be_read_are_left_out(tmp_path):
    folder = tmp_path / "devices"
    folder.mkdir()
    (folder / "a.json").write_text('{"device": "a", "execution": "closed", "finished": "success"}')
    for name, text in (("b", "{"), ("c", '{"device": "a"}'), ("d", '{"device": "d", "execution": "well"}'),
                       ("e e", '{"device": "e e"}'), ("f", " " * 100_000)):
        (folder / f"{name}.json").write_text(text)
    found, wrong = read_devices(tmp_path)
    assert [*found] == ["a"]
    assert len(wrong) == 5
