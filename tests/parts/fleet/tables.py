"""The fleet in the tables of all APIs and commands: options of a daemon that serves one, examples, and arguments."""

from collections.abc import Iterator

from api_examples import ADAPTER, AT, Example
from fleets import write_fleet

from edgetune.formats.bundle import open_bundle


def serving(model, folder):
    """Options of a daemon of this model that serves a fleet."""
    return {"fleet": str(write_fleet(open_bundle(model), folder / "fleet"))}


OPTIONS = (serving,)
ARGUMENTS = (("fleet apply", ["{folder}"]),)


def examples() -> Iterator[Example]:
    yield Example("GET /v1/fleet/order", "See what devices are to do.", answer={
        "rollout": "", "number": 0, "order": "", "signature": "", "files": []})
    report = {"device": "kitchen", "at": AT, "model": "sha256:9f86d081", "rollout": "1767182400-home",
              "execution": "proceeding", "finished": "none", "reason": "6 of 6 examples are answered exactly",
              "adapter": ADAPTER, "verdict": {"passed": True, "wins": 6, "losses": 0}, "installed": [],
              "superseded": [], "kept": [], "version": 1, "edgetune": "0.1.0", "kind": "Raspberry Pi 5, aarch64",
              "base": "smollm2", "active": ADAPTER}
    yield Example("GET /v1/fleet/status", "See devices, rings and rounds.", answer={
        "devices": [{"device": "kitchen", "kind": "Raspberry Pi 5, aarch64", "base": "smollm2", "edgetune": "0.1.0",
                     "active": ADAPTER, "at": AT, "outcome": "succeeded", "reason": "6 of 6 are answered exactly"}],
        "rollout": {"id": "1767182400-home", "status": "running", "ring": 2,
                    "changes": ["advance", "pause", "stop", "undo"],
                    "rings": [{"devices": 1, "begun": True, "succeeded": 1, "refused": 0, "failed": 0}]},
        "rounds": {"base": "smollm2", "number": 4, "arrived": ["kitchen"], "records": [
            {"round": 3, "devices": 3, "left_out": 1, "loss_before": 1.62, "loss_after": 1.46,
             "kinds": [{"kind": "Raspberry Pi 5, aarch64", "devices": 3, "loss_before": 1.62, "loss_after": 1.46}],
             "refused": [{"device": "shed", "reason": "its update is not finite"}]}]},
        "members": None, "unreadable": []})
    yield Example("POST /v1/fleet/rollout/{change}", "Stop a roll-out: no further device begins.",
                  "/v1/fleet/rollout/stop")
    yield Example("PUT /v1/fleet/devices/{device}", "Report what a device did.", "/v1/fleet/devices/kitchen",
                  report, answer=report)
    yield Example("GET /v1/fleet/members", "See which devices have asked to join.", answer={
        "object": "list", "joined": False, "data": [], "unreadable": []})


EXAMPLES = (*examples(),)
