"""The daemon of a device as roll-outs see it, by HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ....errors import NotFoundError

if TYPE_CHECKING:
    from ....daemon.client import Client

ADAPTERS = "/v1/adapters"
SUFFIX = "fleet"


@dataclass(frozen=True)
class About:
    """What a daemon says of itself. model: the fingerprint of its model; base, active, kind: as of DeviceFile."""

    model: str
    base: str
    active: str
    kind: str


@dataclass(frozen=True)
class ServedSlot:
    """The slot that a daemon serves. path: its folder. bad, good: ratings since it opened its base first."""

    path: str
    bad: int = 0
    good: int = 0


@dataclass(frozen=True)
class Held:
    """An adapter that the daemon has. probation: its state, "": it has none."""

    is_active: bool
    passed: bool
    reason: str
    verdict: Mapping[str, Any]
    probation: str = ""
    bad_ratings: int = 0


class DaemonByHttp:
    """The daemon that a client speaks to. All methods raise EdgetuneError if it does not answer."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def about(self) -> About:
        """Returns what it is, and what it answers with."""
        found = self.client.get("/v1/device")
        with self.client.understood():
            values = {"model": found["fingerprint"], "base": found["model"], "active": found.get("adapter") or "",
                      "kind": found["device"].get("kind", "")}
        return self.client.read(About, values, "the device")

    def slot(self) -> ServedSlot | None:
        """Returns the slot that it serves; None: it serves none."""
        found = self.client.get("/v1/device").get("slot")
        if not found:
            return None
        with self.client.understood():
            values = {name: found[name] for name in ("path", "bad", "good") if name in found}
        return self.client.read(ServedSlot, values, "the slot")

    def evaluate_base(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Lets the gate evaluate the base in the other side of its slot, and returns the verdict. Raises UsageError
        if nothing can decide or it takes too much memory, TooMuchError if it can be tried later.
        """
        job = self.client.succeeded(self.client.post("/v1/base/evaluate", dict(options)))
        last = self.client.get(f"/v1/fine_tuning/jobs/{job['id']}/events", limit=1)
        with self.client.understood():
            verdict = dict(last["data"][0]["data"]["verdict"])
            if not (isinstance(verdict["passed"], bool) and isinstance(verdict["reason"], str)):
                raise TypeError("a verdict that is none")
        return verdict

    def add(self, adapter: Path) -> str:
        """Adds an adapter; its id. Raises EdgetuneError if it cannot be used."""
        found = self.client.add_adapter(adapter, SUFFIX)
        with self.client.understood():
            return str(found["id"])

    def evaluate(self, id: str, options: Mapping[str, Any]) -> None:
        """Lets the gate evaluate it, and activate it if it passes. Raises UsageError if nothing can decide."""
        self.client.evaluate_adapter(id, {**options, "promote": True})

    def held(self, id: str) -> Held | None:
        """Returns what the daemon knows of it; None: it is gone."""
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
        """Activates the adapter before, if this one is active; returns whether it was."""
        found = self.held(id)
        if not (found and found.is_active):
            return False
        self.client.post(f"{ADAPTERS}/rollback", {"adapter": id})
        return True

    def delete(self, id: str) -> None:
        with suppress(NotFoundError):
            self.client.delete(f"{ADAPTERS}/{quote(id, safe=':')}")
