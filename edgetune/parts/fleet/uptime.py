"""Time that no setting of a clock changes: the kernel's, since the machine started, also while it slept.

A device without a battery for its clock starts in the past, and is set forward once it has a network. What waits for
hours or days counts by this time, and writes down from when: another date of the machine ends no ring of a roll-out.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...disk import Record, private_folder, state_folder
from ...persisted import from_json

BOOT = Path("/proc/sys/kernel/random/boot_id")  # another one each time that the machine starts
RINGS = "fleet-rings"


@dataclass(frozen=True)
class Moment:
    """boot: the kernel's name for this start of the machine. seconds: since then."""

    boot: str = ""
    seconds: float = 0.0

    def since(self, earlier: Moment) -> float | None:
        """Returns the seconds since an earlier moment; None if the machine was started again, and nobody knows."""
        if not self.boot or self.boot != earlier.boot:
            return None
        return max(self.seconds - earlier.seconds, 0.0)


UNKNOWN = Moment()


def moment() -> Moment:
    """This moment."""
    boot = ""
    with suppress(OSError):
        boot = BOOT.read_text().strip()
    return Moment(boot, time.clock_gettime(time.CLOCK_BOOTTIME))


@dataclass(frozen=True)
class Waited:
    """ring, since: which ring, as of RolloutState. seconds: that it has waited until `seen`, the last look."""

    ring: int
    since: int
    seconds: float
    seen: Moment


def waited(folder: Path, rollout: str, ring: int, since: int, at: Moment, state: Path | None = None) -> float:
    """Returns the seconds that a ring of a folder's roll-out has waited, at this moment; 0 at the first look. state:
    the folder in which whoever looks keeps its state [the user's]. Raises DiskError and FormatError.

    Each look adds the time since the look before, and writes the sum down. Time between the last look and a restart of
    the machine does not count: a ring then waits longer, never less. The file is not in the fleet's folder, where a
    sync may write.
    """
    place = (state or state_folder()) / RINGS
    private_folder(place)
    name = hashlib.sha256(f"{folder.resolve()} {rollout}".encode()).hexdigest()[:16]

    def look(before: Waited | None) -> Waited:
        if before is None or (before.ring, before.since) != (ring, since):
            return Waited(ring, since, 0.0, at)
        return Waited(ring, since, before.seconds + (at.since(before.seen) or 0.0), at)

    hint = "remove it; the time of the ring begins again"
    return Record(place / f"{name}.json", partial(from_json, Waited), hint, 4096).change(look).seconds
