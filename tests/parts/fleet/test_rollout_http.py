"""A roll-out that a daemon serves and devices fetch, by the command and its HTTP."""

from __future__ import annotations

import json
import shutil

import httpx
import pytest
from commands import run
from rollouts import on_device, write_adapters

from edgetune.daemon.client import Client
from edgetune.errors import FormatError
from edgetune.parts.fleet.rollout.folder import newest_order
from edgetune.parts.fleet.rollout.http import FILES, LeadByHttp, fetch, take_report
from edgetune.parts.fleet.rollout.reports import read_device, read_devices


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    return write_adapters(tiny_llama, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def fleet(tiny_llama, tmp_path_factory):
    """A daemon that serves a folder, and one of a device: (the folder, both)."""
    folder = tmp_path_factory.mktemp("fleet")
    with on_device(tiny_llama, folder / "lead", "off", fleet=str(folder / "served")) as lead, \
            on_device(tiny_llama, folder / "device", "on") as device:
        yield folder / "served", lead, device


@pytest.mark.dev
def test_a_device_fetches_and_reports(fleet, made, tmp_path, monkeypatch):
    served, lead, device = fleet
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    loaded = []
    load = LeadByHttp.load
    monkeypatch.setattr(LeadByHttp, "load", lambda self, rollout, file, target: (
        loaded.append(file), load(self, rollout, file, target)))

    def look():
        return json.loads(run("fleet", "apply", lead.url, "--device", "kitchen", "--url", device.url, "--json"))

    assert look()["execution"] == "none"
    assert [*read_devices(served)[0]] == ["kitchen"]
    run("fleet", "rollout", made / "on", served, "--rings", "all", "--probation", "0s")
    found = look()
    assert (found["execution"], found["finished"]) == ("closed", "success")
    assert read_device(served, "kitchen").report == read_device(next((tmp_path / "edgetune/fleet").iterdir()),
                                                                "kitchen").report
    assert loaded == ["artifact.json", "adapter/adapter.gguf", "adapter/run.json"]
    assert look()["execution"] == "closed"
    assert len(loaded) == 3  # an idle device loads nothing
    assert json.loads(run("fleet", "advance", served, "--json"))["status"] == "finished"
    run("fleet", "advance", served, "--undo")
    assert look()["execution"] == "canceled"
    assert device.service.adapters.serving is None
    assert json.loads(run("fleet", "advance", served, "--json"))["status"] == "undone"
    run("fleet", "rollout", made / "off", served, "--rings", "all")
    assert look()["execution"] == "rejected"
    assert len(list(next((tmp_path / "edgetune/fleet").glob("*/rollouts")).iterdir())) == 1  # of old ones nothing stays
    said = run("fleet", "apply", device.url, "--device", "kitchen", "--url", device.url, code=1)
    assert "serves no fleet" in said


def test_what_is_damaged_on_the_way_leaves_nothing(fleet, made, tmp_path):
    served, lead, _ = fleet
    if newest_order(served) is None:
        take_report(served, "kitchen", {"device": "kitchen"})
        run("fleet", "rollout", made / "on", served)
    with Client(lead.url) as client:
        there = LeadByHttp(client)
        whole = there.order()

        class Damaged(LeadByHttp):
            def load(self, rollout, file, target):
                super().load(rollout, file, target)
                if file.endswith(".gguf"):
                    target.write_bytes(target.read_bytes()[:-1])

        class Wrong(LeadByHttp):
            def __init__(self, client, **changes):
                super().__init__(client)
                self.changes = changes

            def order(self):
                return {**whole, **self.changes}

        with pytest.raises(FormatError, match="has the SHA-256"):
            fetch(Damaged(client), tmp_path)
        for changes in ({"rollout": "../up"}, {"number": 0}, {"number": "1"}, {"order": 5}, {"files": ["../key"]},
                        {"files": None}, {"files": [[]]}):
            with pytest.raises(FormatError, match="order that was sent is none"):
                fetch(Wrong(client, **changes), tmp_path)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        fetch(there, tmp_path)
        assert newest_order(tmp_path).state == newest_order(served).state
        shutil.rmtree(tmp_path / "rollouts")
        fetch(Wrong(client, order=whole["order"][:-9]), tmp_path)
        with pytest.raises(FormatError, match="is not JSON"):
            newest_order(tmp_path)


def test_only_what_belongs_to_a_rollout_is_served(fleet):
    served, lead, _ = fleet
    with httpx.Client(base_url=lead.url) as http:
        rollout = http.get("/v1/fleet/order").json()["rollout"]
        assert rollout
        for path in ("../orders/000001/order.json", "orders/000001/order.json", "adapter/../../x", "adapter"):
            assert http.get(f"/v1/fleet/rollouts/{rollout}/{path}").status_code == 404
        assert http.get("/v1/fleet/rollouts/other/artifact.json").status_code == 404
        assert http.get(f"/v1/fleet/rollouts/{rollout}/{FILES[0]}").json()["kind"] == "adapter"
        report = {"device": "cellar", "at": 1, "model": "", "rollout": rollout, "execution": "rejected",
                  "finished": "none", "reason": "", "adapter": "", "verdict": {}, "installed": [], "superseded": [],
                  "kept": [], "version": 1, "edgetune": "0.1.0", "kind": "", "base": "", "active": "", "number": 1,
                  "signature": ""}
        assert http.put("/v1/fleet/devices/cellar", json=report).json() == report
        assert read_device(served, "cellar").execution == "rejected"
        for name, changes in (("attic", {}), ("..", {}), ("cellar", {"execution": "done"}),
                              ("cellar", {"reason": "x" * 40_000}), ("cellar", {"more": 1})):
            said = http.put(f"/v1/fleet/devices/{name}", json={**report, **changes})
            assert said.status_code in (400, 404, 405), name
