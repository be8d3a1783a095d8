"""What a run yields to: every option once, from flags or a policy file."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..options import AUTO, check_options, option
from .device import Profile
from .toml import read_toml

MIB = 2**20
_RESERVE = 8  # what is left to others by default is at most this part of what is available before the run
_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True)
class Policy:
    """Options of the governor. None of them changes what is learned."""

    govern: bool = option(True, "Slow down or pause for heat, throttling, other programs, lack of memory or an empty "
                          "battery. Lack of memory may change the result, by its last bits.",
                          group="What it yields to")
    max_temp: float = option(0.0, "Pause at this temperature (degrees Celsius), slow down 5 below it; auto: where the "
                             "board slows down by itself.", low=0.0, high=120.0, zero=AUTO)
    min_free: int = option(0, "MiB of memory left to others: pause below, slow down below twice as much; auto: by the "
                           "device's profile, at most an eighth of what is available.", low=0, zero=AUTO)
    only_on_power: bool = option(False, "Pause while running on battery.")
    min_battery: int = option(20, "Pause on battery below this percentage.", low=0, high=100)
    quiet_hours: str = option("", "No training in these hours, local time: 08:00-22:00, or 22:00-07:00 over midnight.")
    nice: int = option(0, "Niceness of the process: 19 computes only where nobody else does.", low=0, high=19)
    busy_file: str = option("", "Pause while this file exists. It may hold process numbers, one a line: then it counts "
                            "while one of them lives.")

    def check(self) -> Policy:
        """Returns self; raises UsageError for the first option out of its range."""
        check_options(self)
        self.quiet_minutes()
        return self

    def quiet_minutes(self) -> tuple[int, int] | None:
        """Begin and end in minutes of the day; the end may lie before the begin."""
        return read_hours("quiet-hours", self.quiet_hours) if self.quiet_hours else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_hours(name: str, hours: str) -> tuple[int, int]:
    """08:00-22:00 as minutes of the day; the end may lie before the begin. UsageError names the option."""
    times = [_TIME.fullmatch(part.strip()) for part in hours.split("-")]
    minutes = [int(time[1]) * 60 + int(time[2]) for time in times if time]
    if len(times) != 2 or len(minutes) != 2 or minutes[0] == minutes[1]:
        raise UsageError(f"{name} is {hours!r}, not two different times of the day",
                         f"for example --{name} 08:00-22:00")
    return minutes[0], minutes[1]


def within(minute: int, hours: tuple[int, int]) -> bool:
    """Whether a minute of the day is within read_hours' result."""
    begin, end = hours
    return begin <= minute < end if begin < end else minute >= begin or minute < end


def read_policy(path: Path, **flags: Any) -> Policy:
    """A policy from a file of `name = value` lines; flags win over the file. Raises FormatError, UsageError."""
    kinds: dict[str, Any] = {spec.name: type(spec.default) for spec in fields(Policy)}
    found: dict[str, Any] = {}
    for written, value in read_toml(path).items():
        name = written.replace("-", "_")
        if name not in kinds:
            known = ", ".join(kind.replace("_", "-") for kind in kinds)
            raise UsageError(f"{path} names {written!r}, which is no option of a policy", f"there are {known}")
        if type(value) is not kinds[name] and not (kinds[name] is float and type(value) is int):
            raise UsageError(f"{written} in {path} is {value!r}, not of type {kinds[name].__name__}",
                             "see edgetune train --help")
        found[name] = kinds[name](value)
    return Policy(**found | flags).check()


def resolve(policy: Policy, profile: Profile | None, trip: float | None, available: int | None,
            can_feel: bool) -> Policy:
    """The policy with its zeros replaced by what profile and kernel say. trip: where the kernel slows down by itself;
    available: bytes (None: unknown); can_feel: whether a temperature can be read. max_temp stays 0 where nobody names a
    limit.

    Raises UsageError for a limit that could not be kept.
    """
    limits = [limit for limit in (profile.throttle_temp if profile else 0, trip) if limit]
    critical = profile.critical_temp if profile else 0
    if policy.max_temp and not can_feel:
        raise UsageError(f"max-temp is {policy.max_temp:g}, but this machine shows no temperature", "leave it out")
    if critical and policy.max_temp > critical:
        raise UsageError(f"max-temp is {policy.max_temp:g}, a {profile.name if profile else ''} bears {critical:g}",
                         "lower --max-temp")
    reserve = profile.reserve_mib if profile and profile.reserve_mib else 64
    return replace(policy, max_temp=policy.max_temp or min(limits, default=0.0),
                   min_free=policy.min_free or (reserve if available is None
                                                else min(reserve, available // _RESERVE // MIB)))
