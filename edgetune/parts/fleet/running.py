"""The fleet within a daemon: the folder that it serves, and what comes with a base that a roll-out brought into its
slot: an adapter, and ratings since.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...adapters import store as lora
from ...daemon.options import DaemonConfig
from ...daemon.running import RunningPart
from ...daemon.state.adapters import Adapters
from ...errors import NotFoundError
from ...formats.bundle import sha256
from .bases.slot import ADAPTER, read_origin
from .options import FleetOptions
from .rollout.advancer import Advancer

if TYPE_CHECKING:
    from prometheus_client import Metric
    from starlette.types import Scope

    from ...daemon.service import Service
    from .membership.requests import Devices

PASSED = "the gate let it pass together with its base"
SUFFIX = "fleet"  # of the adapter's id
CAME = "SELECT min(at) AS at FROM service WHERE cause = ? AND base = ?"
Arrival = tuple[str, int]  # the roll-out that brought a base, and when it was opened first, in seconds
log = logging.getLogger("edgetune.daemon")


class RunningFleet(RunningPart):
    """The fleet of a daemon. advancer: of the folder that it serves; None: it serves none, and may still be a device of
    a fleet.
    """

    def __init__(self, config: DaemonConfig) -> None:
        options = cast(FleetOptions, config)
        folder = Path(options.fleet).expanduser() if options.fleet else None
        key = Path(options.fleet_sign).expanduser() if options.fleet_sign else None
        self.advancer = Advancer(folder, key, config.folder()) if folder else None

    def join(self, service: Service) -> None:
        self._service = service

    def start(self) -> None:
        if self.advancer:
            self.advancer.start()
        service = self._service
        self._came = arrival(service.path, service.adapters) if service.slot else None

    def stop(self) -> None:
        if self.advancer:
            self.advancer.stop()

    def threads(self) -> Sequence[threading.Thread]:
        return [self.advancer.thread] if self.advancer else []

    def reasons(self) -> Sequence[str]:
        return self.advancer.reasons() if self.advancer else []

    def device(self) -> dict[str, Any]:
        slot: dict[str, Any] | None = None
        if self._service.slot:
            slot = {"path": str(self._service.slot.path.resolve())}
            if self._came:
                rollout, since = self._came
                slot |= {"rollout": rollout, "since": since, **self._service.probations.ratings_since(since)}
        return {"fleet": self.advancer is not None, "slot": slot}

    def metrics(self) -> Iterator[Metric]:
        if self.advancer is None:
            return
        from ...daemon.api.metrics import family, gauge
        from .privacy import spent
        from .rollout.rings import STATUSES
        from .status import status_of
        found = status_of(self.advancer.folder, outcomes=0)
        rollout, rounds = found.rollout, found.rounds
        last = rounds.records[-1] if rounds and rounds.records else None
        yield family("fleet_devices", "Devices by their outcome in the newest roll-out.", "outcome", found.counts())
        yield family("fleet_rollout", "1: the status of the newest roll-out.", "status",
                     {status: int(status == rollout.status) for status in STATUSES} if rollout else {})
        yield gauge("fleet_ring", "The newest ring that has begun, from 1 on.", rollout and rollout.ring)
        yield gauge("fleet_rings", "Rings of the newest roll-out.", rollout and len(rollout.rings))
        yield gauge("fleet_round", "The round that runs.", rounds and rounds.number)
        yield gauge("fleet_answers", "Answers to it that have arrived.", rounds and len(rounds.arrived or []))
        yield gauge("fleet_counted", "Answers that counted in the round before.", last and last.devices)
        yield gauge("fleet_left_out", "Answers to it that were left out.", last and last.left_out)
        for name in ("before", "after"):
            yield gauge(f"fleet_loss_{name}", f"Mean loss on the devices' held-out rows {name} that round.",
                         last and getattr(last, f"loss_{name}"))
        noise = spent(rounds.records) if rounds else None
        totals = {"answer": noise.answer.total, "sum": noise.sum.total} if noise else {}
        yield family("fleet_epsilon", "Of the noise of all rounds, against whoever sees answers, or only the sums.",
                     "against", {whom: epsilon for whom, epsilon in totals.items() if epsilon is not None})
        yield family("fleet_members", "Devices that asked to join, by state.", "state", found.members or {})
        yield gauge("fleet_unreadable", "Parts of the folder that cannot be read.", len(found.unreadable))

    def admit(self, scope: Scope) -> str | None:
        return self._devices.admit(scope) if self._devices else None

    @cached_property
    def _devices(self) -> Devices | None:
        from .membership.requests import Devices
        return Devices(self.advancer.folder) if self.advancer else None


def advancer_of(service: Service) -> Advancer:
    """Returns that of the folder which a daemon serves. Raises NotFoundError if it serves none."""
    found = cast(RunningFleet, service.running["fleet"]).advancer
    if found is None:
        raise NotFoundError("this daemon serves no fleet", "start it with --fleet FOLDER")
    return found


def arrival(side: Path, adapters: Adapters) -> Arrival | None:
    """Activates what came with the base in this side of a slot, the adapter or the base alone, when it is opened first.
    None: no roll-out brought it. Raises errors of add_foreign, so that a daemon does not answer with half of what was
    evaluated.
    """
    origin = read_origin(side)
    if origin is None:
        return None
    cause = f"its base came by the roll-out {origin.rollout}"
    if _since(adapters, cause) is None:
        id = None
        if (side / ADAPTER).is_dir():
            digest = sha256(side / ADAPTER / lora.FILE)
            known = next((found for found in adapters.list() if found.sha256 == digest), None)  # of an earlier start
            id = (known or adapters.add_foreign(side / ADAPTER, SUFFIX)).id
            adapters.set_verdict(id, {"passed": True, "reason": PASSED})
        adapters.note(id, cause)
        log.info("%s is active: %s", id or "the base alone", cause)
    return origin.rollout, int(_since(adapters, cause))


def _since(adapters: Adapters, cause: str) -> Any:
    """Returns when a base came, in seconds; None: it was not opened yet."""
    return adapters.store.read(CAME, cause, adapters.base)[0]["at"]
