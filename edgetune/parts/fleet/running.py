"""The fleet within a daemon: whose folder it serves, and which replaces the base of its slot."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...daemon.options import DaemonConfig
from ...daemon.running import RunningPart
from ...errors import NotFoundError
from .bases.arrival import arrival, slot_facts
from .options import FleetOptions
from .rollout.advancer import Advancer

if TYPE_CHECKING:
    from prometheus_client import Metric
    from starlette.types import Scope

    from ...daemon.service import Service
    from .api.devices import Devices


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
        return {"fleet": self.advancer is not None, "slot": slot_facts(self._service, self._came)}

    def metrics(self) -> Iterator[Metric]:
        if self.advancer:
            from .api.metrics import metrics_of
            yield from metrics_of(self.advancer.folder)

    def admit(self, scope: Scope) -> str | None:
        return self._devices.admit(scope) if self._devices else None

    @cached_property
    def _devices(self) -> Devices | None:
        from .api.devices import Devices
        return Devices(self.advancer.folder) if self.advancer else None


def advancer_of(service: Service) -> Advancer:
    """Returns that of the folder which a daemon serves. Raises NotFoundError if it serves none."""
    found = cast(RunningFleet, service.running["fleet"]).advancer
    if found is None:
        raise NotFoundError("this daemon serves no fleet", "start it with --fleet FOLDER")
    return found
