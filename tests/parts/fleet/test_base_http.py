"""A base that a daemon serves: a device loads it when its ring begins, and continues a download that broke off."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest
from daemons import daemon
from tiny import write_tiny

from edgetune.daemon.client import Client
from edgetune.errors import FormatError, UnansweredError
from edgetune.formats.bundle import open_bundle
from edgetune.parts.fleet.rollout import rings
from edgetune.parts.fleet.rollout.folder import begin, newest_order, step
from edgetune.parts.fleet.rollout.http import LeadByHttp, fetch, fetch_base
from edgetune.parts.fleet.rollout.reports import read_device, write_device
from edgetune.parts.fleet.rollout.rings import RingPlan

EVALUATION = {"required": "better", "if_none": "refuse", "probation": 0, "bad_ratings": 3}


@pytest.fixture(scope="module")
def lead(tmp_path_factory):
    """A daemon that serves the roll-out of a base to `kitchen`, and then to `cellar`: (its URL, the folder)."""
    folder = tmp_path_factory.mktemp("lead")
    base = write_tiny(folder / "base.gguf", formats="Q8_0")
    new = write_tiny(folder / "new.gguf", seed=1)
    for name in ("kitchen", "cellar"):
        write_device(folder / "fleet", read_device(folder / "fleet", name))
    begin(folder / "fleet", new, RingPlan(("1", "all")), EVALUATION, 0, first=["kitchen"])
    with daemon(base, folder / "state", context=256, fleet=str(folder / "fleet")) as running:
        yield running.url, folder / "fleet"


@pytest.fixture
def asked(lead):
    """A client, and the requests that it sent."""
    with Client(lead[0]) as client:
        sent = []
        client._http.event_hooks["request"].append(sent.append)
        yield LeadByHttp(client), sent


def test_a_download_that_broke_off_is_continued(asked, lead, tmp_path, monkeypatch):
    there, sent = asked
    fetch(there, tmp_path)
    order = newest_order(tmp_path)
    assert order.kind == "base"
    fetch_base(there, tmp_path, "cellar")
    assert not order.stated.base.exists()  # its ring has not begun
    whole = httpx.Response.iter_raw

    def broken(self):
        yield next(whole(self, 100_000))
        raise httpx.ReadError("the line is cut")

    with monkeypatch.context() as cut:
        cut.setattr(httpx.Response, "iter_raw", broken)
        for _ in range(2):
            with pytest.raises(UnansweredError, match="broke off"):
                fetch_base(there, tmp_path, "kitchen")
    part = order.stated.base / "manifest.json.part"
    assert part.exists() or (order.stated.base / "model.gguf.part").exists()
    sent.clear()
    fetch_base(there, tmp_path, "kitchen")
    ranges = [request.headers["Range"] for request in sent if "Range" in request.headers]
    assert "bytes=200000-" in ranges or "bytes=100000-" in ranges
    assert newest_order(tmp_path).artifact.facts == newest_order(lead[1]).artifact.facts
    assert open_bundle(order.stated.base).fingerprint == order.stated.facts.base
    assert not list(tmp_path.rglob("*.part"))
    sent.clear()
    fetch(there, tmp_path)
    fetch_base(there, tmp_path, "kitchen")
    assert [request.url.path for request in sent] == ["/v1/fleet/order"]  # an idle device loads nothing
    own = replace(read_device(tmp_path, "kitchen"), rollout=order.facts.rollout, execution=rings.REJECTED)
    write_device(tmp_path, own)
    fetch_base(there, tmp_path, "kitchen")
    assert not order.stated.base.exists()  # it takes the disk's place for nothing now


def test_a_damaged_download_begins_again(asked, tmp_path):
    there, _ = asked
    fetch(there, tmp_path)

    class Damaged(LeadByHttp):
        def load_rest(self, rollout, file, target, size):
            super().load_rest(rollout, file, target, size)
            with target.open("r+b") as written:
                written.write(b"no")

    with pytest.raises(FormatError, match="has the SHA-256"):
        fetch_base(Damaged(there.client), tmp_path, "kitchen")
    assert not list(tmp_path.rglob("*.part"))
    fetch_base(there, tmp_path, "kitchen")
    assert newest_order(tmp_path).artifact


def test_only_files_of_the_base_are_served(lead):
    url, folder = lead
    rollout = newest_order(folder).facts.rollout
    (newest_order(folder).folder / "artifact" / "base" / "notes").write_text("not listed")
    with httpx.Client(base_url=f"{url}/v1/fleet/rollouts/{rollout}/") as http:
        assert http.get("base/manifest.json").json()["format"] == "gguf"
        for name in ("base/notes", "base", "base/..%2Fartifact.json", "base/..%2F..%2Fx"):
            assert http.get(name).status_code == 404, name
    step(folder, 1)
