"""A daemon that serves a fleet: its status, what its owner decides about a roll-out, and its metrics."""

from __future__ import annotations

import shutil

import httpx
import pytest
from daemons import PATIENCE, daemon
from fleets import report, write_fleet
from prometheus_client.parser import text_string_to_metric_families
from tiny import write_tiny

from edgetune.daemon.options import DaemonConfig
from edgetune.errors import UsageError
from edgetune.fleet.rollout import rings
from edgetune.fleet.rollout.folder import newest_order, step
from edgetune.fleet.status import status_json, status_of
from edgetune.formats.bundle import open_bundle
from edgetune.formats.signature import private_key


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two private keys; the public one of the first is with it."""
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder = tmp_path_factory.mktemp("keys")
    for name in ("one", "two"):
        key = Ed25519PrivateKey.generate()
        (folder / name).write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8,
                                                      forms.NoEncryption()))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(forms.Encoding.OpenSSH,
                                                                           forms.PublicFormat.OpenSSH))
    return folder / "one", folder / "two"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(a model, a folder of a fleet): read only."""
    folder = tmp_path_factory.mktemp("fleet")
    model = write_tiny(folder / "tiny.gguf", formats="Q8_0", n_context=512)
    return model, write_fleet(open_bundle(model), folder / "served")


@pytest.fixture(scope="module")
def running(written, tmp_path_factory, keys):
    model, _ = written
    folder = tmp_path_factory.mktemp("daemon")
    with daemon(model, folder / "state", context=256, fleet=str(folder / "served"), fleet_sign=str(keys[0])) as running:
        yield running


@pytest.fixture
def folder(written, running):
    """The served folder, as it was at first."""
    path = running.service.config.folder().parent / "served"
    shutil.rmtree(path, ignore_errors=True)
    return shutil.copytree(written[1], path)


@pytest.fixture
def http(running):
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as made:
        yield made


def test_the_status_is_that_of_the_folder(http, folder):
    assert http.get("/v1/fleet/status").json() == status_json(status_of(folder))
    assert http.get("/v1/device").json()["fleet"]


def test_a_rollout_is_paused_continued_stopped_and_undone(http, folder, keys):
    def ask(change):
        return http.post(f"/v1/fleet/rollout/{change}")

    paused = ask("pause").json()
    assert (paused["status"], paused["reason"], paused["ring"]) == ("paused", "a person paused it", 2)
    assert paused["changes"] == ["resume", "stop", "undo"]
    report(folder, "d2", rollout=paused["id"], execution=rings.CLOSED, finished=rings.SUCCESS)
    step(folder, 1)
    assert newest_order(folder).state.status == rings.PAUSED
    resumed = ask("resume").json()
    assert (resumed["status"], resumed["ring"], resumed["rings"][1]["succeeded"]) == ("running", 3, 1)
    assert ask("stop").json()["status"] == "stopped"
    refused = ask("pause")
    assert (refused.status_code, refused.json()["error"]["message"]) == (
        400, "the roll-out is stopped; pause one that is running")
    assert ask("undo").json()["status"] == "undoing"
    order = newest_order(folder)
    assert order.state.action("kitchen") == rings.CANCEL
    assert order.signer == private_key(keys[0]).public_key().public_bytes_raw().hex()
    assert ask("begin").status_code == 400
    report(folder, "kitchen", rollout=order.facts.rollout, execution=rings.CANCELED, finished=rings.SUCCESS)
    report(folder, "d2", rollout=order.facts.rollout, execution=rings.CANCELED, finished=rings.SUCCESS)
    assert ask("advance").json()["status"] == "undone"


def test_what_is_decided_about_signed_orders_is_signed(written, folder, http, keys, tmp_path, monkeypatch):
    """By the daemon's key; without one it is refused, since devices would obey no such order."""
    shutil.rmtree(folder)
    write_fleet(open_bundle(written[0]), folder, key=keys[0])
    signer = newest_order(folder).signer
    assert http.post("/v1/fleet/rollout/pause").json()["signer"] == signer
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    shutil.copy(f"{keys[0]}.pub", trusted)
    with monkeypatch.context() as patched:
        patched.setenv("EDGETUNE_TRUSTED", str(trusted))
        assert newest_order(folder).state.status == rings.PAUSED
    with pytest.raises(UsageError, match=f"are signed by {signer[:16]}, and no key is given"):
        step(folder, 1, rings.STOP)
    step(folder, 1, rings.STOP, keys[1])
    assert newest_order(folder).signer != signer


def test_a_key_that_is_none_is_known_before_it_is_needed(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        DaemonConfig(fleet_sign=str(tmp_path / "none")).check()


def test_metrics_of_a_fleet(http, folder):
    def read():
        text = http.get("/metrics").text
        return {(sample.name.removeprefix("edgetune_fleet_"), *sample.labels.values()): sample.value
                for family in text_string_to_metric_families(text) for sample in family.samples
                if sample.name.startswith("edgetune_fleet_")}

    found = read()
    counts = {labels[0]: value for (name, *labels), value in found.items() if name == "devices"}
    assert counts == status_of(folder).counts()
    assert [found["rollout", status] for status in ("running", "paused")] == [1, 0]
    assert (found["ring",], found["rings",], found["round",], found["answers",]) == (2, 3, 4, 0)
    assert (found["counted",], found["left_out",], found["unreadable",]) == (3, 1, 0)
    last = status_of(folder).rounds.records[-1]
    assert (found["loss_before",], found["loss_after",]) == (last.loss_before, last.loss_after)
    (folder / "devices" / "d1.json").write_text("{")
    shutil.copytree(folder / "round-0003" / "answers", folder / "round-0004" / "answers")
    found = read()
    assert (found["unreadable",], found["answers",]) == (1, 4)
    shutil.rmtree(folder)
    assert set(read()) == {("unreadable",), *(("devices", word) for word in counts)}


def test_a_daemon_without_a_fleet_has_none_of_it(tiny_q8, tmp_path):
    with daemon(tiny_q8, tmp_path / "state", context=256) as alone, httpx.Client(base_url=alone.url,
                                                                                timeout=PATIENCE) as http:
        assert "edgetune_fleet" not in http.get("/metrics").text
        assert not http.get("/v1/device").json()["fleet"]
        for said in (http.get("/v1/fleet/status"), http.post("/v1/fleet/rollout/stop")):
            assert said.status_code == 404
            assert "serves no fleet" in said.text
