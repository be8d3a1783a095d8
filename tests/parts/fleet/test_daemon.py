"""A daemon that serves a fleet: its status, what its owner decides about a roll-out, and its metrics."""

from __future__ import annotations

import os
import shutil
import time

import httpx
import pytest
from daemons import PATIENCE, daemon
from fleets import EVALUATION, report, signing_key, write_fleet, write_rounds
from prometheus_client.parser import text_string_to_metric_families
from services import until
from tiny import write_tiny

from edgetune.daemon.options import DaemonConfig
from edgetune.errors import UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.formats.signature import private_key
from edgetune.parts.fleet.rollout import rings
from edgetune.parts.fleet.rollout.folder import begin, newest_order, step
from edgetune.parts.fleet.rollout.rings import RingPlan
from edgetune.parts.fleet.running import RunningFleet
from edgetune.parts.fleet.status import status_json, status_of
from edgetune.parts.fleet.uptime import Moment, waited


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two private keys; the public one of the first is with it."""
    pytest.importorskip("cryptography")
    folder = tmp_path_factory.mktemp("keys")
    return signing_key(folder / "one"), signing_key(folder / "two")


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
    said = http.get("/v1/fleet/status").json()["obstacle"]
    assert http.get("/v1/fleet/status").json() == {**status_json(status_of(folder)), "obstacle": said}
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


def test_health_knows_the_thread_of_rollouts(running):
    threads = [thread for part in running.service.parts for thread in part.threads()]
    assert [thread.is_alive() for thread in threads if thread.name == "rollouts"] == [True]


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


def test_epsilon_is_in_the_status_and_in_metrics(http, folder, bundle):
    assert http.get("/v1/fleet/status").json()["privacy"] is None
    for path in folder.glob("round-*"):
        shutil.rmtree(path)
    write_rounds(bundle, folder, 2, noise=4.0)
    found = http.get("/v1/fleet/status").json()["privacy"]
    assert found["answer"]["total"] > found["answer"]["last"] > found["sum"]["last"] > 0
    text = http.get("/metrics").text
    assert f'edgetune_fleet_epsilon{{against="sum"}} {found["sum"]["total"]}' in text


def test_a_daemon_without_a_fleet_has_none_of_it(tmp_path):
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0")
    with daemon(model, tmp_path / "state", context=256) as alone, httpx.Client(base_url=alone.url,
                                                                                timeout=PATIENCE) as http:
        assert "edgetune_fleet" not in http.get("/metrics").text
        assert not http.get("/v1/device").json()["fleet"]
        for said in (http.get("/v1/fleet/status"), http.post("/v1/fleet/rollout/stop")):
            assert said.status_code == 404
            assert "serves no fleet" in said.text


def test_rings_begin_by_themselves_as_devices_report(written, folder, http, keys, monkeypatch):
    """The next ring, then a stop by its counts; each order is signed."""
    shutil.rmtree(folder)
    write_fleet(open_bundle(written[0]), folder, key=keys[0])
    signer = newest_order(folder).signer
    assert http.get("/v1/fleet/status").json()["obstacle"] == ""
    report(folder, "d2", rollout=newest_order(folder).facts.rollout, execution=rings.CLOSED, finished=rings.SUCCESS)
    advancing = advancer(fleet=str(folder), fleet_sign=str(keys[0]))
    monkeypatch.setattr("edgetune.parts.fleet.rollout.advancer.EVERY", 0.05)
    monkeypatch.setattr("edgetune.parts.fleet.rollout.advancer.SHARE", 1.0)
    advancing.start()
    try:
        until(lambda: newest_order(folder).state.ring == 2)
        report(folder, "d3", rollout=newest_order(folder).facts.rollout, execution=rings.CLOSED, finished=rings.FAILURE)
        report(folder, "late")  # is of the last ring
        until(lambda: "late" in newest_order(folder).state.begun)
        assert newest_order(folder).state.status == rings.RUNNING  # the plan allows any share of failures
        assert http.post("/v1/fleet/rollout/pause").json()["status"] == "paused"
        for name in ("d4", "d5", "late"):
            report(folder, name, rollout=newest_order(folder).facts.rollout, execution=rings.CLOSED,
                   finished=rings.SUCCESS)
        until(lambda: advancing._seen and not advancing.failure)
        assert newest_order(folder).state.status == rings.PAUSED
        http.post("/v1/fleet/rollout/resume")
        until(lambda: newest_order(folder).state.status == rings.FINISHED)
        assert newest_order(folder).signer == signer
    finally:
        advancing.stop()


def advancer(**options):
    """That of a daemon with these options."""
    return RunningFleet(DaemonConfig(**options)).advancer


def looks(advancing):
    """Looks of an Advancer on a machine whose clock is right."""
    return lambda seconds: advancing.look(seconds, Moment("boot", seconds))


def test_a_rollout_that_fails_is_stopped_by_itself(bundle, tmp_path):
    folder = tmp_path / "folder"
    for name in ("a", "b", "c"):
        report(folder, name)
    begun = begin(folder, write_rounds(bundle, folder, 1), RingPlan(("1", "all"), error=0.02), EVALUATION, 1000,
                  first=["a"])
    look = looks(advancer(fleet=str(folder), state=str(tmp_path / "state")))
    look(2000)
    assert newest_order(folder).facts.number == 1  # nobody has reported
    report(folder, "a", rollout=begun.facts.rollout, execution=rings.CLOSED, finished=rings.FAILURE)
    look(4000)
    stopped = newest_order(folder).state
    assert (stopped.status, stopped.ring) == (rings.STOPPED, 0)
    report(folder, "a", rollout=begun.facts.rollout, execution=rings.CLOSED, finished=rings.SUCCESS)
    look(6000)
    assert newest_order(folder).state == stopped


def test_a_ring_whose_time_is_over_waits_for_a_person(bundle, tmp_path):
    folder = tmp_path / "folder"
    report(folder, "a")
    begin(folder, write_rounds(bundle, folder, 1), RingPlan(("all",), wait=60_000), EVALUATION, 1000)
    old(folder)
    look = looks(advancer(fleet=str(folder), state=str(tmp_path / "state")))
    for now in (1001, 30_000):
        look(now)
        assert newest_order(folder).state.status == rings.RUNNING
    look(1001 + 60_000)
    assert newest_order(folder).state.status == rings.PAUSED
    assert "0 of 1 devices" in newest_order(folder).state.reason


@pytest.mark.parametrize("jump", [10**9, -10**9])
def test_a_clock_that_is_set_ends_no_ring(bundle, tmp_path, jump):
    """A device without a battery for its clock gets the date from the network, long after a ring has begun."""
    folder = tmp_path / "folder"
    report(folder, "a")
    begin(folder, write_rounds(bundle, folder, 1), RingPlan(("all",), wait=60_000), EVALUATION, 1_600_000_000)
    config = {"fleet": str(folder), "state": str(tmp_path / "state")}
    advancing = advancer(**config)
    advancing.look(1_600_000_010, Moment("boot", 10.0))
    advancing.look(1_600_020_000 + jump, Moment("boot", 20_000.0))
    advancing = advancer(**config)  # the daemon was started again, and the machine was not
    advancing.look(1_600_040_000 + jump, Moment("boot", 40_000.0))
    assert newest_order(folder).state.status == rings.RUNNING
    advancing = advancer(**config)  # the machine was: what it was off does not count
    advancing.look(1_700_000_000 + jump, Moment("other boot", 5.0))
    advancing.look(1_700_000_000, Moment("other boot", 20_000.0))
    state = newest_order(folder).state
    assert waited(folder, newest_order(folder).facts.rollout, state.ring, state.since, Moment("other boot", 20_000.0),
                  tmp_path / "state") == 39_990.0 + 19_995.0
    assert state.status == rings.RUNNING
    advancing.look(1_700_000_020, Moment("other boot", 20_020.0))
    assert newest_order(folder).state.status == rings.PAUSED
    assert "0 of 1 devices" in newest_order(folder).state.reason


def test_a_quiet_fleet_is_not_read(folder, monkeypatch):
    """No file is opened until a time changes, or an hour is over."""
    old(folder)
    advancing = advancer(fleet=str(folder))
    reads = []
    monkeypatch.setattr("edgetune.parts.fleet.rollout.advancer.step",
                        lambda *args, **given: reads.append(1) or step(*args, **given))
    now = time.time()
    look = looks(advancing)
    for seconds in range(0, 3600, 60):
        look(now + seconds)
    assert len(reads) <= 2  # the second: its places were known after the first
    report(folder, "d3")
    look(now + 3600)
    before = len(reads)
    look(now + 3660)
    assert len(reads) == before
    look(now + 7300)
    assert len(reads) == before + 1


def test_only_what_its_own_key_signed_advances_by_itself(written, folder, http, keys):
    """Who can write into the folder must not get the daemon's signature."""
    advancing = advancer(fleet=str(folder), fleet_sign=str(keys[0]))
    report(folder, "d2", rollout=newest_order(folder).facts.rollout, execution=rings.CLOSED, finished=rings.SUCCESS)
    looks(advancing)(1)
    assert newest_order(folder).state.ring == 1
    assert "is not signed, and this daemon signs" in http.get("/v1/fleet/status").json()["obstacle"]
    http.post("/v1/fleet/rollout/advance")
    assert http.get("/v1/fleet/status").json()["obstacle"] == ""
    assert newest_order(folder).state.ring == 2
    shutil.rmtree(folder)
    write_fleet(open_bundle(written[0]), folder, key=keys[1])
    order = newest_order(folder)
    report(folder, "d2", rollout=order.facts.rollout, execution=rings.CLOSED, finished=rings.SUCCESS)
    said = http.get("/v1/fleet/status").json()["obstacle"]
    assert f"{order.facts.rollout} is signed by {order.signer[:16]}, and this daemon signs as" in said
    without = advancer(fleet=str(folder))
    for one in (advancing, without):
        looks(one)(5000)
    assert newest_order(folder).facts.number == order.facts.number
    assert without.obstacle("x", order.signer).endswith("and this daemon has no --fleet-sign")
    step(folder, 3, rings.STOP, keys[1])
    assert http.get("/v1/fleet/status").json()["obstacle"] == ""  # nothing runs


def test_a_damaged_order_does_not_end_the_thread(folder, caplog):
    advancing = advancer(fleet=str(folder))
    order = newest_order(folder)
    path = order.folder / "orders" / f"{order.facts.number:06d}" / "order.json"
    whole = path.read_text()
    path.write_text("{")
    for now in (1000, 2000):
        looks(advancing)(now)
    assert "is not JSON" in advancing.obstacle("x", "")
    assert caplog.text.count("does not advance") == 1
    path.write_text(whole)
    looks(advancing)(3000)
    assert advancing.obstacle("x", "") == ""


def old(folder):
    """The folders changed a minute ago."""
    for place in (folder / "devices", folder / "rollouts", newest_order(folder).folder / "orders"):
        os.utime(place, (time.time() - 60,) * 2)
