"""A fleet that edgetune of December 2026 wrote still opens: its rounds, its roll-out, its members."""

import json

from commands import run
from old_states import extracted


def test_a_fleet_of_an_earlier_version_is_read(tmp_path):
    folder = extracted(tmp_path, "fleet")
    said = json.loads(run("fleet", "status", folder, "--json"))
    assert said["unreadable"] == []
    assert said["rollout"]["ring"] == 2
    assert {"kitchen", "d1"} <= {device["device"] for device in said["devices"]}
    assert said["members"] == {"waiting": 1, "approved": 1, "revoked": 1}
    assert len(said["rounds"]["records"]) == 3
