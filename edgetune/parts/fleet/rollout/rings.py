"""A roll-out in rings: what becomes of it, as pure functions of its state, the reports of devices and the time.

Words are those of hawkBit's Direct Device Integration API. A device reports an execution, and whether it finished: it
downloads, then proceeds while its probation runs, and then has closed with success. It has closed with failure where it
rolled the adapter or base back, or could not evaluate it. It has rejected one that its gate refused: that is no error.

A ring ends when all its devices have an outcome, or when `wait` seconds are over. Only devices that have one count:

- too many failures in any ring stop the roll-out for good. Their share is that of devices that reported, but of
  1 / error devices (or all of the ring) at least, so that the first of many devices does not stop it by itself;
- too few successes, or outcomes of too few devices, pause it for a person. It pauses before the ring ends where the
  devices that are left could not change that;
- else the next ring begins.

A person may pause it, too. Resuming begins the next ring if the rules would pause it again, else it continues in
the same ring. Undoing asks every device that has it to go back.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from ....errors import UsageError

RUNNING = "running"
PAUSED = "paused"  # a person decides
STOPPED = "stopped"
FINISHED = "finished"
UNDOING = "undoing"
UNDONE = "undone"
STATUSES = (RUNNING, PAUSED, STOPPED, FINISHED, UNDOING, UNDONE)

NOTHING = "none"  # of a device that has not begun
DOWNLOADED = "downloaded"
PROCEEDING = "proceeding"
CLOSED = "closed"
REJECTED = "rejected"
CANCELED = "canceled"
EXECUTIONS = (NOTHING, DOWNLOADED, PROCEEDING, CLOSED, REJECTED, CANCELED)
SUCCESS = "success"
FAILURE = "failure"
RESULTS = (NOTHING, SUCCESS, FAILURE)

PAUSE = "pause"  # what a person asks for
RESUME = "resume"
STOP = "stop"
UNDO = "undo"
ADVANCE = "advance"  # nothing but counting the reports
CHANGES = (PAUSE, RESUME, STOP, UNDO, ADVANCE)
RESUMED = "a person resumed it"

DEPLOY = "deploy"  # what a device is to do
CANCEL = "cancel"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class RingReport:
    """What a device last said. reason: a sentence, for a person."""

    execution: str = NOTHING
    finished: str = NOTHING
    reason: str = ""

    def check(self, source: str) -> RingReport:
        """Raises UsageError for a word that is none."""
        for what, said, words in (("execution", self.execution, EXECUTIONS), ("result", self.finished, RESULTS)):
            if said not in words:
                raise UsageError(f"{source} has the {what} {said!r:.40}", f"the words are {', '.join(words)}")
        return self


@dataclass(frozen=True)
class RingPlan:
    """The rules of a roll-out. rings: how many devices it reaches with each, as a number, a share, or all. success:
    share of outcomes that succeed, at least; error: share of failures, at most; quorum: share of a ring's devices that
    must have an outcome; all 0 to 1. wait: seconds for them.
    """

    rings: tuple[str, ...] = ("1", "10%", "all")
    success: float = 0.95
    error: float = 0.02
    quorum: float = 0.5
    wait: int = 7 * 86_400

    def check(self) -> RingPlan:
        """Raises UsageError for a value out of its range."""
        for name in ("success", "error", "quorum"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value <= 1):
                raise UsageError(f"{name} is {value!r:.40}", "give a share from 0% to 100%")
        if self.wait < 1:
            raise UsageError(f"wait is {self.wait} seconds", "give a time such as 7d")
        self.sizes(1000)
        return self

    def sizes(self, devices: int) -> list[int]:
        """Returns the number of devices that each ring reaches, those of earlier rings included. Raises UsageError."""
        if not self.rings:
            raise UsageError("rings names none", "give 1,10%,all")
        found: list[int] = []
        before: dict[bool, Fraction] = {}
        for ring in self.rings:
            share, size = _size(ring, devices)
            asked = Fraction(int(ring)) if share is None else share
            if asked <= before.get(share is None, 0):
                raise UsageError(f"the ring {ring} reaches no more devices than the one before",
                                 "give growing rings, such as 1,10%,all")
            before[share is None] = asked
            found.append(max(size, *found, 0))
        return found


def _size(ring: str, devices: int) -> tuple[Fraction | None, int]:
    """Returns (the share of a ring, None of a number; its devices). Raises UsageError."""
    if ring == "all":
        return Fraction(1), devices
    if found := re.fullmatch(r"(\d{1,3}(?:\.\d{1,4})?)%", ring):
        share = Fraction(found[1]) / 100
        if 0 < share <= 1:
            return share, math.ceil(share * devices)
    if re.fullmatch(r"[1-9]\d{0,8}", ring):
        return None, min(int(ring), devices)
    raise UsageError(f"the ring {ring!r:.20} is neither a number, a percentage nor all", "give 1,10%,all")


@dataclass(frozen=True)
class RolloutState:
    """The state. rings: the names of each ring's devices. ring: the index of the newest that has begun. since: when it
    began, in seconds. reason: of the status, a sentence.
    """

    plan: RingPlan
    rings: tuple[tuple[str, ...], ...]
    since: int
    ring: int = 0
    status: str = RUNNING
    reason: str = ""

    @property
    def begun(self) -> list[str]:
        """Returns the devices of the rings that have begun."""
        return [device for ring in self.rings[:self.ring + 1] for device in ring]

    @property
    def is_open(self) -> bool:
        """Returns whether devices may still be asked to change something."""
        return self.status in (RUNNING, PAUSED, UNDOING)

    def action(self, device: str) -> str:
        """Returns what a device is to do: DEPLOY, CANCEL, or "": nothing that it has not begun."""
        if device not in self.begun:
            return ""
        if self.status in (UNDOING, UNDONE):
            return CANCEL
        return "" if self.status == STOPPED else DEPLOY


@dataclass(frozen=True)
class RingCounts:
    """The devices of a ring by their outcome. succeeded: their probation is over. trying: they have begun, waiting: not
    yet.
    """

    succeeded: int = 0
    refused: int = 0
    failed: int = 0
    canceled: int = 0
    trying: int = 0
    waiting: int = 0

    @property
    def devices(self) -> int:
        return self.outcomes + self.canceled + self.trying + self.waiting

    @property
    def outcomes(self) -> int:
        return self.succeeded + self.refused + self.failed

    @property
    def reported(self) -> int:
        return self.devices - self.waiting


def counts(devices: Iterable[str], reports: Mapping[str, RingReport]) -> RingCounts:
    found = [outcome(reports.get(device, RingReport())) for device in devices]
    return RingCounts(**{name: found.count(name) for name in RingCounts.__dataclass_fields__})


def outcome(report: RingReport) -> str:
    """Returns the outcome of a device, a field of RingCounts."""
    if report.execution == CLOSED:
        return "succeeded" if report.finished == SUCCESS else "failed"
    return {NOTHING: "waiting", REJECTED: "refused", CANCELED: "canceled"}.get(report.execution, "trying")


def begin(plan: RingPlan, devices: Sequence[str], now: int, seed: str, first: Sequence[str] = ()) -> RolloutState:
    """Returns a roll-out to these devices, in an order that the seed decides. first: devices that come before the
    others.

    Raises UsageError for a plan out of its range, and for no devices.
    """
    plan.check()
    if unknown := [device for device in first if device not in devices]:
        raise UsageError(f"no device is called {unknown[0]!r:.70}", f"there are {', '.join(sorted(devices)[:8])}")
    if not devices:
        raise UsageError("no device has reported to this folder",
                         "run edgetune fleet apply FOLDER on each device first")
    ordered = sorted(set(devices), key=lambda name: (first.index(name) if name in first else len(first),
                                                     hashlib.sha256(f"{seed} {name}".encode()).digest()))
    edges = [0, *plan.sizes(len(ordered))]
    rings = [tuple(ordered[start:end]) for start, end in pairwise(edges) if end > start]
    return RolloutState(plan, tuple(rings), now)


def join(state: RolloutState, devices: Iterable[str]) -> RolloutState:
    """Returns the state with devices that came later in its last ring, if the plan reaches all."""
    known = {device for ring in state.rings for device in ring}
    late = tuple(sorted(set(devices) - known))
    if not late or state.plan.rings[-1] not in ("all", "100%"):
        return state
    return replace(state, rings=(*state.rings[:-1], state.rings[-1] + late))


def advance(state: RolloutState, reports: Mapping[str, RingReport], now: int, waited: float) -> RolloutState:
    """Returns the state after these reports. It moves by one ring at most. now: seconds since 1970, to write down;
    waited: seconds that the newest ring has, by a clock that nobody sets.
    """
    if state.status in (UNDOING, UNDONE):
        return _undone(state, reports)
    if state.status != STOPPED and (why := _failed(state, reports)):
        return replace(state, status=STOPPED, reason=why)
    if state.status not in (RUNNING, PAUSED):
        return state
    found = counts(state.rings[state.ring], reports)
    left = _left(state, found, waited)
    if why := _too_few(state, found, left):
        return replace(state, status=PAUSED, reason=why)
    if left or state.status == PAUSED:
        return state
    return _next(state, now, f"{found.succeeded} of {found.outcomes} devices of {_ring(state)} succeeded")


def _left(state: RolloutState, found: RingCounts, waited: float) -> int:
    """Returns the devices of the newest ring for which it waits."""
    return 0 if waited >= state.plan.wait else found.trying + found.waiting


def _ring(state: RolloutState) -> str:
    return f"ring {state.ring + 1} of {len(state.rings)}"


def _too_few(state: RolloutState, found: RingCounts, left: int) -> str:
    """Returns why the rules pause the roll-out in its newest ring, in a sentence, or ""."""
    ring = _ring(state)
    if not left and found.outcomes < math.ceil(state.plan.quorum * found.devices):
        return (f"{found.outcomes} of {found.devices} devices of {ring} have an outcome, {state.plan.quorum:.0%} are "
                "needed")
    possible = (found.succeeded + left) / max(found.outcomes + left, 1)
    if found.outcomes and possible < state.plan.success:
        lost = found.outcomes - found.succeeded
        return (f"{lost} of {found.outcomes + left} devices of {ring} refused it or failed, "
                f"{1 - state.plan.success:.0%} may")
    return ""


def _next(state: RolloutState, now: int, why: str) -> RolloutState:
    if state.ring == len(state.rings) - 1:
        return replace(state, status=FINISHED, reason=why)
    return replace(state, status=RUNNING, ring=state.ring + 1, since=now, reason=why)


def _failed(state: RolloutState, reports: Mapping[str, RingReport]) -> str:
    """Returns why the roll-out stops: a ring with too many failures, in a sentence, or ""."""
    most = state.plan.error
    for number, ring in enumerate(state.rings[:state.ring + 1], start=1):
        found = counts(ring, reports)
        least = min(found.devices, math.ceil(1 / most) if most else 1)
        if found.failed > most * max(found.reported, least):
            return (f"{found.failed} of {found.reported} devices of ring {number} that reported have failed, "
                    f"{most:.0%} are allowed")
    return ""


def _undone(state: RolloutState, reports: Mapping[str, RingReport]) -> RolloutState:
    found = counts(state.begun, reports)
    have = found.succeeded + found.trying
    status = UNDOING if have else UNDONE
    return replace(state, status=status, reason=f"{have} devices have it still" if have else
                   f"{found.canceled} devices went back")


def changed(state: RolloutState, change: str, reports: Mapping[str, RingReport], now: int,
            waited: float) -> RolloutState:
    """Returns the state after what a person asked for, one of CHANGES. now, waited: as of `advance`. Raises UsageError
    if the state does not allow it.
    """
    if change == RESUME:
        return resume(state, reports, now, waited)
    if change == ADVANCE:  # which follows every change
        return state
    return {PAUSE: pause, STOP: stop, UNDO: undo}[change](state)


def changes(state: RolloutState) -> list[str]:
    """Returns the changes that a person can ask for now."""
    possible = {RUNNING: [ADVANCE, PAUSE, STOP, UNDO], PAUSED: [RESUME, STOP, UNDO], UNDOING: [ADVANCE], UNDONE: []}
    return possible.get(state.status, [UNDO])


def pause(state: RolloutState) -> RolloutState:
    """Lets no further ring begin. Devices whose ring has begun continue. Raises UsageError for one that is not running.
    """
    if state.status != RUNNING:
        raise UsageError(f"the roll-out is {state.status}", "pause one that is running")
    return replace(state, status=PAUSED, reason="a person paused it")


def resume(state: RolloutState, reports: Mapping[str, RingReport], now: int, waited: float) -> RolloutState:
    """Lets a paused roll-out continue: with the next ring if the rules would pause it again, else in the same one.
    now, waited: as of `advance`. Raises UsageError for one that is not paused.
    """
    if state.status != PAUSED:
        raise UsageError(f"the roll-out is {state.status}", "resume one that is paused")
    found = counts(state.rings[state.ring], reports)
    if _too_few(state, found, _left(state, found, waited)):
        return _next(state, now, RESUMED)
    return replace(state, status=RUNNING, reason=RESUMED)


def stop(state: RolloutState) -> RolloutState:
    """Lets no further device begin. Raises UsageError for a roll-out that is not running or paused."""
    if state.status not in (RUNNING, PAUSED):
        raise UsageError(f"the roll-out is {state.status}", "stop one that is running or paused")
    return replace(state, status=STOPPED, reason="a person stopped it")


def undo(state: RolloutState) -> RolloutState:
    """Lets every device that has it go back to what it had before. Raises UsageError if that was done."""
    if state.status in (UNDOING, UNDONE):
        raise UsageError(f"the roll-out is {state.status}", "begin another one")
    return replace(state, status=UNDOING, reason="a person undid it")
