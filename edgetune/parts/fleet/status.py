"""What a person wants to know of a fleet's folder: its devices, the newest roll-out, and the rounds.

A part that cannot be read is left out and said, so that one damaged file hides no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import EdgetuneError
from .membership.members import STATES, is_joined, read_members
from .privacy import DELTA, spent
from .rollout import rings
from .rollout.folder import Order, newest_order
from .rollout.reports import DeviceFile, read_reports, reports_of
from .rounds.places import RoundPlace, newest, rounds_of
from .rounds.task import FACTS, VERSION, Outcome, RoundRecord, TaskFacts, losses_by_kind, read_outcome, records_of
from .signed_folder import is_whole, read_facts

OUTCOMES = 20  # rounds whose outcome is read at most
WORDS = tuple(rings.RingCounts.__dataclass_fields__)
OUTSIDE = "outside"  # a device that the roll-out does not reach
EXCLUDED = "excluded"  # one that has not joined the fleet, or was revoked


@dataclass(frozen=True)
class RoundHistory:
    """base: the model's name. number: of the task's round; records: of the rounds before it. arrived: the devices whose
    answers are in the folder; None if only a task was named. outcomes: of the latest rounds, as far as they are in
    the folder.
    """

    base: str
    number: int
    records: list[RoundRecord]
    arrived: list[str] | None
    outcomes: list[Outcome] = field(default_factory=list)


def history_of(path: Path, outcomes: int = OUTCOMES) -> RoundHistory:
    """Returns the history of a task, or of the newest in a folder of rounds. outcomes: rounds whose outcome is read at
    most. Raises the errors of `newest`, read_facts and read_outcome.
    """
    place = None if is_whole(path, FACTS) else newest(path)
    facts, _, _ = read_facts(place.task if place else path, FACTS, TaskFacts, VERSION)
    records = records_of(facts.history, str(path))
    arrived = sorted(folder.name for folder in place.answer_folders()) if place else None
    latest = records[max(len(records) - outcomes, 0):]
    tasks = [RoundPlace(path, one.round + 1).task for one in latest] if place else [path]
    read = [found for task in tasks if (found := read_outcome(task))]
    return RoundHistory(str(facts.base.get("name", "")), facts.round, records, arrived, read)


@dataclass(frozen=True)
class RolloutStatus:
    """The newest roll-out. kind: of its artifact, adapter or base; "": not known. rings: of each its number of devices,
    whether it has begun, and how many have each outcome of WORDS. changes: what a person can ask for now. since: when
    the ring began. signer: as of Order.
    """

    id: str
    kind: str
    number: int
    status: str
    reason: str
    ring: int
    since: int
    signer: str
    rings: list[dict[str, Any]]
    changes: list[str]


@dataclass(frozen=True)
class FleetStatus:
    """devices: what each last reported, with its outcome in the roll-out, one of WORDS, OUTSIDE or EXCLUDED.

    rollout, rounds: None if there are none, or they cannot be read. members: devices that asked to join, by their
    state; None if none has to. unreadable: why, and which files of devices cannot be read.
    """

    devices: list[dict[str, Any]] = field(default_factory=list)
    rollout: RolloutStatus | None = None
    rounds: RoundHistory | None = None
    members: dict[str, int] | None = None
    unreadable: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Returns the number of devices by outcome."""
        found = [device["outcome"] for device in self.devices]
        return {word: found.count(word) for word in (*WORDS, OUTSIDE, EXCLUDED)}


def status_of(folder: Path, outcomes: int = OUTCOMES) -> FleetStatus:
    """Returns the status of a folder of roll-outs, of rounds, or of both; an empty one if there is no folder yet.
    outcomes: rounds whose outcome is read at most.
    """
    devices, excluded, wrong = read_reports(folder)
    order: Order | None = None
    rounds: RoundHistory | None = None
    try:
        order = newest_order(folder)
    except EdgetuneError as error:
        wrong.append(error.what)
    try:
        rounds = history_of(folder, outcomes) if rounds_of(folder) else None
    except EdgetuneError as error:
        wrong.append(error.what)
    reached = {name for ring in order.state.rings for name in ring} if order else set()
    lines = [*(_device(device, order, device.device in reached) for device in devices.values()),
             *({**_facts(device), "outcome": EXCLUDED, "reason": why} for device, why in excluded)]
    return FleetStatus(sorted(lines, key=lambda line: str(line["device"])),
                       rollout_status(order, devices) if order else None, rounds, _members(folder, wrong), wrong)


def rollout_status(order: Order, devices: Mapping[str, DeviceFile]) -> RolloutStatus:
    """Returns the status of a roll-out by what these devices reported."""
    state = order.state
    reports = reports_of({**devices}, order.facts.rollout)
    found = [{"devices": len(ring), "begun": i <= state.ring, **asdict(rings.counts(ring, reports))}
             for i, ring in enumerate(state.rings)]
    return RolloutStatus(order.facts.rollout, order.kind, order.facts.number, state.status, state.reason,
                         state.ring + 1, state.since, order.signer, found, rings.changes(state))


def rounds_table(rounds: RoundHistory) -> list[dict[str, Any]]:
    """Returns a line for each round: its record, `kinds`: its losses by kind of device, and `refused`: what was left
    out and why. Both are empty for rounds whose outcome is not there.
    """
    outcomes = {one.round: one for one in rounds.outcomes}
    return [{**vars(record), "kinds": losses_by_kind(outcomes[record.round]) if record.round in outcomes else [],
             "refused": outcomes[record.round].left_out if record.round in outcomes else []}
            for record in rounds.records]


def status_json(found: FleetStatus, delta: float = DELTA) -> dict[str, Any]:
    """Returns the status as JSON. delta: of `privacy`, what noise of all rounds hides, which is null if there was none.
    """
    rounds = found.rounds
    noise = spent(rounds.records, delta) if rounds else None
    return {"devices": found.devices, "rollout": asdict(found.rollout) if found.rollout else None,
            "rounds": rounds and {"base": rounds.base, "number": rounds.number, "arrived": rounds.arrived,
                                  "records": rounds_table(rounds)}, "privacy": noise and asdict(noise),
            "members": found.members, "unreadable": found.unreadable}


def _members(folder: Path, wrong: list[str]) -> dict[str, int] | None:
    """Counts the devices that asked to join, as FleetStatus has them; adds what cannot be read to `wrong`."""
    if not is_joined(folder):
        return None
    members, unreadable = read_members(folder)
    wrong += unreadable
    found = [member.state for member in members.values()]
    return {state: found.count(state) for state in STATES}


def _facts(device: DeviceFile) -> dict[str, Any]:
    names = ("device", "kind", "base", "model", "edgetune", "active", "at")
    return {name: getattr(device, name) for name in names}


def _device(device: DeviceFile, order: Order | None, is_reached: bool) -> dict[str, Any]:
    if not order or not is_reached:
        return {**_facts(device), "outcome": OUTSIDE, "reason": ""}
    report = device.report if device.rollout == order.facts.rollout else rings.RingReport()
    return {**_facts(device), "outcome": rings.outcome(report), "reason": report.reason}
