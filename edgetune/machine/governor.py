"""Go, slower or pause: a pure decision over readings, and the governor that asks for it once a second.

A decision is left later than it is entered (each limit has a band), and no two changes lie less than ten seconds apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UsageError, size_text
from .device import Profile
from .policy import MIB, Policy, resolve, within
from .sensors import Readings, Sensors

ACTIONS = ("go", "slower", "pause")
CHANGE_SECONDS = 10.0  # between two changes, at least
LOOK_SECONDS = 1.0  # between two looks

HEAT_BAND = 5.0  # degrees: slow down that far below the limit, and continue that far below where it began
BATTERY_BAND = 5  # percent
MEMORY_BAND = 1.5  # continue with that many times the memory
# percent of the time: slow down where some wait for memory, pause where all do
STALLED = 20.0
STALLED_FULL = 50.0
BUSY_SHARE = 0.5  # of the processors that others use: slow down, if someone waits as well
WAITING = 5.0  # percent of the time in which a task waits for a processor


@dataclass(frozen=True)
class GovernorState:
    """What holds since when (monotonic seconds), by which rule, and why, in words."""

    action: str = "go"
    rule: str = ""
    cause: str = ""
    since: float = -math.inf


Level = tuple[int, str]  # an index of ACTIONS, and the cause
NOTHING: Level = (0, "")


def decide(r: Readings, policy: Policy, state: GovernorState, now: float) -> GovernorState:
    """The next state. policy must be resolved. Where several rules want something, the strictest wins; among equals
    memory, for which more is done, or else the one that holds already, so that its cause stays.
    """
    wants = {name: rule(r, policy, ACTIONS.index(state.action) if state.rule == name else 0)
             for name, rule in RULES.items()}
    name = max(wants, key=lambda n: (wants[n][0], n == "memory", n == state.rule))
    level, cause = wants[name]
    if level == 0:
        name = ""
        cause = _recovery(state.rule, r) if state.rule else ""
    if (ACTIONS[level], name) == (state.action, state.rule):
        return replace(state, cause=cause or state.cause)  # its numbers may have moved
    return GovernorState(ACTIONS[level], name, cause, now) if now - state.since >= CHANGE_SECONDS else state


def _level(value: float, edges: tuple[float, float], band: float, held: int) -> int:
    """2 from the second edge on, 1 from the first; a level that is held is left only `band` further down."""
    return sum(value >= edge - (band if held >= level else 0) for level, edge in enumerate(edges, 1))


# ---- the rules: (readings, policy, the level that this rule holds already) -> level and cause ----------------------


def _quiet(r: Readings, policy: Policy, _held: int) -> Level:
    hours = policy.quiet_minutes()
    if hours is None:
        return NOTHING
    return (2, f"it is {r.minute // 60:02}:{r.minute % 60:02}, in the quiet hours {policy.quiet_hours}"
            ) if within(r.minute, hours) else NOTHING


def _power(r: Readings, policy: Policy, held: int) -> Level:
    percent = "" if r.battery is None else f", {r.battery} % left"
    if r.on_battery and policy.only_on_power:
        return 2, f"running on battery{percent}"
    low = r.on_battery and r.battery is not None and r.battery < policy.min_battery + (BATTERY_BAND if held else 0)
    return (2, f"the battery is low{percent}") if low else NOTHING


def _memory(r: Readings, policy: Policy, held: int) -> Level:
    """What this process gave back does not count as free while it holds back: it would take it again."""
    if r.killed:
        return 2, "the kernel killed a process for memory"
    free = r.available - (r.returned if held else 0)
    edges = (-2.0 * policy.min_free * MIB, -1.0 * policy.min_free * MIB)
    level = sum(-free > edge * (MEMORY_BAND if held >= i else 1) for i, edge in enumerate(edges, 1)) if r.total else 0
    stall = max(_level(r.memory_stall, (STALLED, math.inf), STALLED / 2, held),
                2 * _level(r.memory_stall_full, (STALLED_FULL, math.inf), STALLED_FULL / 2, held // 2))
    if stall > level:
        return stall, f"programs wait for memory {max(r.memory_stall, r.memory_stall_full):.0f} % of the time"
    return level, f"{size_text(max(free, 0))} of memory are left, {size_text(policy.min_free * MIB)} are kept free"


def _heat(r: Readings, policy: Policy, held: int) -> Level:
    if r.temperature is None or not policy.max_temp:
        return NOTHING
    level = _level(r.temperature, (policy.max_temp - HEAT_BAND, policy.max_temp), HEAT_BAND, held)
    return level, f"{r.zone} is at {r.temperature:.0f} °C, the limit is {policy.max_temp:g}{_in_mode(r)}"


def _in_mode(r: Readings) -> str:
    """A Jetson in a smaller power mode is slower, and stays cooler."""
    return f", in power mode {r.power_mode}" if r.power_mode else ""


def _load(r: Readings, _policy: Policy, held: int) -> Level:
    """Others who find enough free processors are no reason to slow down."""
    waiting = held or r.cpu_stall is None or r.cpu_stall >= WAITING
    half = BUSY_SHARE * r.processors
    level = _level(r.others_busy, (half, math.inf), half / 2, held) if waiting else 0
    return level, f"other programs use {r.others_busy:.1f} of {r.processors} processors"


RULES: dict[str, Callable[[Readings, Policy, int], Level]] = {
    "memory": _memory, "power": _power, "heat": _heat, "quiet": _quiet,
    "foreground": lambda r, _policy, _held: (2, "someone is being answered") if r.foreground else NOTHING,
    "throttling": lambda r, _policy, _held: (1, r.throttled + _in_mode(r)) if r.throttled else NOTHING,
    "load": _load}


_OVER = {"power": "there is power again", "quiet": "the quiet hours are over",
         "foreground": "nobody is being answered any more", "throttling": "the board is not throttled any more",
         "load": "other programs need less"}


def _recovery(rule: str, r: Readings) -> str:
    """Why it continues, by the rule that held it."""
    if rule == "memory":
        return f"{size_text(r.available)} of memory are free again"
    if rule == "heat":
        return f"cooled down to {r.temperature or 0:.0f} °C"
    return _OVER[rule]


class Governor:
    """Reads the machine below `root`, once a second at most, and keeps the decision in `state`.

    busy: says, as the policy's file, that someone is answered. Raises UsageError for a policy this machine cannot keep.
    """

    def __init__(self, policy: Policy | None = None, profile: Profile | None = None, root: str | Path = "/", *,
                 busy: Callable[[], bool] | None = None, local: Callable[[], time.struct_time] = time.localtime,
                 clock: Callable[[], float] = time.monotonic) -> None:
        policy = (policy or Policy()).check()
        self.sensors = Sensors(root, profile.zones if profile else (), policy.busy_file, busy, local)
        self.readings = self.sensors.read()
        self._asked = policy
        self._before = self.readings.available if self.readings.total else None
        self.policy = resolve(policy, profile, self.readings.trip, self._before, self.readings.temperature is not None)
        self.state = GovernorState()
        self.clock = clock
        self._next = -math.inf

    def expect(self, nbytes: int) -> None:
        """The run will take `nbytes` more than the process had before. If that leaves less than a reserve by
        default, the reserve becomes smaller: else the run would wait for ever, for memory that it takes itself.

        Raises UsageError where it leaves less than the policy asked for.
        """
        if self._before is None:
            return
        left = max(self._before - nbytes, 0) // MIB
        if self._asked.min_free > left:
            raise UsageError(f"min-free is {self._asked.min_free}, but this run leaves {size_text(left * MIB)} of "
                             "memory free",
                             "lower --min-free, or what the run needs")
        if not self._asked.min_free:
            self.policy = replace(self.policy, min_free=min(self.policy.min_free, left // 4))

    def look(self) -> bool:
        """Decides again if it is time to; True when that changed action or rule."""
        now = self.clock()
        if now < self._next:
            return False
        self._next = now + LOOK_SECONDS
        self.readings = self.sensors.read()
        before = self.state
        self.state = decide(self.readings, self.policy, self.state, now)
        return self.state.since != before.since

    @property
    def short_of_memory(self) -> bool:
        """Whether memory is to be given back now: at once, not only ten seconds after the last change."""
        return _memory(self.readings, self.policy, 0)[0] > 0
