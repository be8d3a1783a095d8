"""What comes with a base that a roll-out brought: an adapter, and ratings since."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....adapters import store as lora
from ....daemon.state.adapters import Adapters
from ....formats.bundle import sha256
from .slot import ADAPTER, read_origin

if TYPE_CHECKING:
    from ....daemon.service import Service

PASSED = "the gate let it pass together with its base"
SUFFIX = "fleet"  # of the adapter's id
CAME = "SELECT min(at) AS at FROM service WHERE cause = ? AND base = ?"
log = logging.getLogger("edgetune.daemon")


@dataclass(frozen=True)
class Arrival:
    """rollout: that brought the base. since: when it was opened first, in seconds."""

    rollout: str
    since: int


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
        id = _kept(adapters, side / ADAPTER) if (side / ADAPTER).is_dir() else None
        adapters.note(id, cause)
        log.info("%s is active: %s", id or "the base alone", cause)
    return Arrival(origin.rollout, int(_since(adapters, cause)))


def slot_facts(service: Service, came: Arrival | None) -> dict[str, Any] | None:
    """Returns the slot for /v1/device."""
    if service.slot is None:
        return None
    facts: dict[str, Any] = {"path": str(service.slot.path.resolve())}
    if came:
        facts |= {"rollout": came.rollout, "since": came.since, **service.probations.ratings_since(came.since)}
    return facts


def _since(adapters: Adapters, cause: str) -> Any:
    """Returns when a base came, in seconds; None: it was not opened yet."""
    return adapters.store.read(CAME, cause, adapters.base)[0]["at"]


def _kept(adapters: Adapters, source: Path) -> str:
    """Returns the id of an adapter, which is kept already after an earlier start."""
    digest = sha256(source / lora.FILE)
    known = next((found for found in adapters.list() if found.sha256 == digest), None)
    found = known or adapters.add_foreign(source, SUFFIX)
    return adapters.set_verdict(found.id, {"passed": True, "reason": PASSED}).id
