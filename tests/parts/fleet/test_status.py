"""edgetune.parts.fleet.status and the command: rounds, a roll-out and devices of one folder, as a person reads them."""

from __future__ import annotations

import json
import math
import shutil
from statistics import NormalDist

import pytest
from commands import run
from fleets import KINDS, report, signing_key, write_fleet, write_rounds

from edgetune.formats.signature import private_key
from edgetune.parts.fleet.membership import invites, members
from edgetune.parts.fleet.membership.device import public_of
from edgetune.parts.fleet.rollout import rings
from edgetune.parts.fleet.rollout.folder import newest_order, step
from edgetune.parts.fleet.rollout.reports import read_device, sign, write_device
from edgetune.parts.fleet.status import EXCLUDED, OUTSIDE, status_json, status_of


@pytest.fixture(scope="module")
def written(bundle, tmp_path_factory):
    return write_fleet(bundle, tmp_path_factory.mktemp("fleet") / "folder")


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "folder")


def test_all_of_a_folder(folder):
    found = status_json(status_of(folder))
    assert found["unreadable"] == []
    outcomes = {device["device"]: (device["outcome"], device["reason"]) for device in found["devices"]}
    assert outcomes == {"kitchen": ("succeeded", "6 of 6 examples are answered exactly"),
                        "d1": ("refused", "not surely better: 0 of 6 more"),
                        **{f"d{i}": ("waiting", "") for i in range(2, 6)}}
    kitchen = next(device for device in found["devices"] if device["device"] == "kitchen")
    assert (kitchen["kind"], kitchen["base"], kitchen["active"]) == (KINDS[0], "tiny", "ft:tiny:fleet:1")
    rollout = found["rollout"]
    assert (rollout["status"], rollout["ring"], rollout["signer"]) == ("running", 2, "")
    assert rollout["changes"] == ["advance", "pause", "stop", "undo"]
    second = {"devices": 2, "begun": True, "succeeded": 0, "refused": 1, "failed": 0, "canceled": 0, "trying": 0,
              "waiting": 1}
    assert rollout["rings"][1] == second
    assert [ring["devices"] for ring in rollout["rings"]] == [1, 2, 3]
    rounds = found["rounds"]
    assert (rounds["base"], rounds["number"], rounds["arrived"]) == ("tiny.gguf", 4, [])
    last = rounds["records"][-1]
    loss = 2.0 * 0.9 ** 3
    assert (last["round"], last["devices"], last["left_out"]) == (3, 3, 1)
    assert [(one["kind"], one["devices"]) for one in last["kinds"]] == [(KINDS[0], 1), (KINDS[1], 2)]
    assert [one["loss_after"] for one in last["kinds"]] == pytest.approx([loss, loss + 0.2])
    assert last["loss_after"] == pytest.approx(loss + 0.4 / 3)
    assert [one["device"] for one in last["refused"]] == ["late"]
    assert "answer.json is of version None" in last["refused"][0]["reason"]


def test_epsilon_of_rounds_with_noise(bundle, folder, tmp_path):
    """By the definition of the mechanism: over 3 rounds an answer has the loss sqrt(3) / 4, a sum of three 1 / 4."""
    assert status_json(status_of(folder))["privacy"] is None
    write_rounds(bundle, tmp_path / "noisy", 3, noise=4.0)
    found = status_json(status_of(tmp_path / "noisy"))["privacy"]
    assert found["delta"] == 1e-5
    normal = NormalDist().cdf
    for mu, epsilon in ((1 / 4, found["answer"]["last"]), (3 ** 0.5 / 4, found["answer"]["total"]),
                        (1 / 4 / 3 ** 0.5, found["sum"]["last"]), (1 / 4, found["sum"]["total"])):
        assert normal(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal(-mu / 2 - epsilon / mu) == pytest.approx(
            1e-5, rel=1e-6)
    said = run("fleet", "status", tmp_path / "noisy", "--delta", "1e-3")
    assert "noise, delta 0.001: epsilon " in said


def test_noise_before_a_round_without_any_is_said(bundle, tmp_path):
    write_rounds(bundle, tmp_path / "noisy", 1, noise=4.0)
    facts = tmp_path / "noisy" / "round-0002" / "task" / "task.json"
    written = json.loads(facts.read_text())
    written["history"].append({**written["history"][0], "round": 2, "mu_answer": None, "mu_sum": None})
    facts.write_text(json.dumps(written))
    nothing = {"last": None, "total": None}
    assert status_json(status_of(tmp_path / "noisy"))["privacy"] == {"delta": 1e-5, "answer": nothing, "sum": nothing}
    assert "the last round had no noise" in run("fleet", "status", tmp_path / "noisy")


@pytest.mark.parametrize("wrong", [
    {"devices": [{"device": "a", "held_rows": None, "loss_before": 1.0, "loss_after": 1.0}]},
    {"devices": [{"device": "a", "held_rows": 10**400, "loss_before": 1.0, "loss_after": 1.0}]},
    {"devices": [{"device": "a", "loss_before": "1", "loss_after": 1.0}]}, {"devices": [None]},
    {"devices": [{"share": 1.0}]}, {"devices": [{"device": 1}]}, {"left_out": [{"device": "a"}]}, {"left_out": ["a"]}])
def test_what_became_of_a_round_is_checked(folder, wrong):
    """Each item of it, so that the status says the file that is damaged, and all that others say."""
    outcome = folder / "round-0004" / "task" / "round.json"
    outcome.write_text(json.dumps({**json.loads(outcome.read_text()), **wrong}))
    said = " ".join(run("fleet", "status", folder).split())
    assert "left out: " in said
    assert "round.json" in said
    assert len(status_of(folder).devices) == 6


def test_counts_follow_the_devices(folder):
    assert status_of(folder).counts() == {"succeeded": 1, "refused": 1, "failed": 0, "canceled": 0, "trying": 0,
                                          "waiting": 4, OUTSIDE: 0, EXCLUDED: 0}
    order = newest_order(folder)
    report(folder, "d2", rollout=order.facts.rollout, execution=rings.PROCEEDING)
    report(folder, "new")  # reported after the roll-out began, and no order names it yet
    counts = status_of(folder).counts()
    assert (counts["trying"], counts["waiting"], counts[OUTSIDE]) == (1, 3, 1)
    step(folder, order.facts.at)
    assert status_of(folder).counts()[OUTSIDE] == 0


def test_devices_that_asked_to_join_are_counted(folder, tmp_path):
    assert status_of(folder).members is None
    key = private_key(signing_key(tmp_path / "key"))
    for name, public in {"kitchen": public_of(key), "attic": "b" * 64}.items():
        invites.join(folder, invites.invite(folder, 1), name, public, 2)
    members.approve(folder, "kitchen", 3)
    assert (status_of(folder).counts()["succeeded"], status_of(folder).counts()[EXCLUDED]) == (0, 6)
    write_device(folder, sign(read_device(folder, "kitchen"), key))
    found = status_of(folder)
    assert found.members == {"waiting": 1, "approved": 1, "revoked": 0}
    assert (found.counts()["succeeded"], found.counts()[EXCLUDED], found.unreadable) == (1, 5, [])
    assert found.devices[0]["reason"] == "no device 'd1' has joined the fleet"
    assert found.rollout.rings[1]["refused"] == 0  # what d1 reported counts no longer
    said = run("fleet", "status", folder)
    assert "devices that joined: 1 waiting, 1 approved, 0 revoked" in said
    assert "d1: excluded: no device 'd1' has joined the fleet" in said
    (folder / "members" / "attic.json").write_text("{}")
    assert "attic.json" in status_of(folder).unreadable[0]


def test_what_cannot_be_read_hides_nothing_else(folder):
    (folder / "devices" / "d5.json").write_text("{")
    order = newest_order(folder)
    (folder / "rollouts" / order.facts.rollout / "orders" / f"{order.facts.number:06d}" / "order.json").write_text("{}")
    (folder / "round-0004" / "task" / "round.json").write_text("{}")
    found = status_of(folder)
    assert len(found.devices) == 5
    assert found.rollout is None
    assert found.rounds is None
    for part, why in zip(("d5.json", "order.json", "round.json"), found.unreadable, strict=True):
        assert part in why
    assert "left out: " in run("fleet", "status", folder)


def test_the_command(folder, tmp_path):
    said = run("fleet", "status", folder)
    for words in ("kitchen", "x86_64", "d1: refused: not surely better: 0 of 6 more", "is running",
                  "round 4 of tiny.gguf: 0 answers have arrived", "left out: round 3: late: answer.json is of version"):
        assert words in said, said
    assert json.loads(run("fleet", "status", folder, "--json")) == status_json(status_of(folder))
    said = run("fleet", "status", folder / "round-0004" / "task")
    assert "this is the task of round 4" in said
    assert "kitchen" not in said
    assert "holds no round-0001/task" in run("fleet", "status", tmp_path / "folder" / "devices", code=1)
    assert "there is no folder" in run("fleet", "status", tmp_path / "nothing", code=2)
    shutil.rmtree(folder / "rollouts")
    for path in folder.glob("round-*"):
        shutil.rmtree(path)
    assert "outside" in run("fleet", "status", folder)
