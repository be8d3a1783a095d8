"""Daemons as the roll-outs of a fleet see them, by HTTP: that of a device, and one that serves the folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ....daemon.client import Client
from ....disk import json_text
from ....errors import NotFoundError
from ..bases.trial import ServedSlot
from ..membership.lead import Signing
from .apply import Held
from .folder import DeviceFile
from .look import About
from .reports import sign

ADAPTERS = "/v1/adapters"
SUFFIX = "fleet"


class DaemonByHttp:
    """The daemon that a client speaks to. As apply.Daemon, whose errors it raises."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def about(self) -> About:
        found = self.client.get("/v1/device")
        with self.client.understood():
            values = {"model": found["fingerprint"], "base": found["model"], "active": found.get("adapter") or "",
                      "kind": found["device"].get("kind", "")}
        return self.client.read(About, values, "the device")

    def slot(self) -> ServedSlot | None:
        found = self.client.get("/v1/device").get("slot")
        if not found:
            return None
        with self.client.understood():
            values = {name: found[name] for name in ("path", "bad", "good") if name in found}
        return self.client.read(ServedSlot, values, "the slot")

    def evaluate_base(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        job = self.client.succeeded(self.client.post("/v1/base/evaluate", dict(options)))
        last = self.client.get(f"/v1/fine_tuning/jobs/{job['id']}/events", limit=1)
        with self.client.understood():
            verdict = dict(last["data"][0]["data"]["verdict"])
            if not (isinstance(verdict["passed"], bool) and isinstance(verdict["reason"], str)):
                raise TypeError("a verdict that is none")
        return verdict

    def add(self, adapter: Path) -> str:
        found = self.client.add_adapter(adapter, SUFFIX)
        with self.client.understood():
            return str(found["id"])

    def evaluate(self, id: str, options: Mapping[str, Any]) -> None:
        self.client.evaluate_adapter(id, {**options, "promote": True})

    def held(self, id: str) -> Held | None:
        try:
            found = self.client.get(f"{ADAPTERS}/{quote(id, safe=':')}")
        except NotFoundError:
            return None
        with self.client.understood():
            verdict = found["verdict"]
            probation = found["probation"] or {"state": "", "bad": 0}
            values = {"is_active": found["state"] == "serving", "passed": verdict["passed"],
                      "reason": verdict["reason"], "verdict": verdict, "probation": probation["state"],
                      "bad_ratings": probation["bad"]}
        return self.client.read(Held, values, "the adapter")

    def go_back(self, id: str) -> bool:
        found = self.held(id)
        if not (found and found.is_active):
            return False
        self.client.post(f"{ADAPTERS}/rollback", {"adapter": id})
        return True

    def delete(self, id: str) -> None:
        with suppress(NotFoundError):
            self.client.delete(f"{ADAPTERS}/{quote(id, safe=':')}")


class LeadByHttp:
    """The daemon that serves a folder, by its client. As RolloutLead, whose errors it raises. A device that
    joined signs its report by the key that signs its requests.
    """

    def __init__(self, client: Client) -> None:
        self.client = client

    def order(self) -> Mapping[str, Any]:
        return self.client.get("/v1/fleet/order")

    def load(self, rollout: str, file: str, target: Path) -> None:
        self.client.download(f"/v1/fleet/rollouts/{quote(rollout)}/{quote(file)}", target)

    def load_rest(self, rollout: str, file: str, target: Path, size: int) -> None:
        self.client.download_rest(f"/v1/fleet/rollouts/{quote(rollout)}/{quote(file)}", target, size)

    def report(self, found: DeviceFile) -> None:
        if isinstance(self.client.sign, Signing):
            found = sign(found, self.client.sign.key())
        self.client.put(f"/v1/fleet/devices/{quote(found.device)}", json.loads(json_text(asdict(found))))
