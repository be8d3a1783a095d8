"""The time that a ring has waited, by a clock that nobody sets: another date of the machine ends no ring.

Each look adds the time since the look before, by the kernel's clock (uptime.py), and writes the sum down. Time between
the last look and a restart of the machine does not count: a ring then waits longer, never less. The file is with the
state of whoever looks, and not in the fleet's folder, where a sync may write.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ....disk import Record, private_folder, state_folder
from ....persisted import from_json
from ..uptime import Moment

FOLDER = "fleet-rings"


@dataclass(frozen=True)
class Waited:
    """ring, since: which ring, as of RolloutState. seconds: that it has waited until `seen`, the last look."""

    ring: int
    since: int
    seconds: float
    seen: Moment


@dataclass(frozen=True)
class Waiting:
    """The time that rings of a folder's roll-outs wait. state: the folder in which whoever looks keeps its state [the
    user's].
    """

    folder: Path
    state: Path | None = None

    def seconds(self, rollout: str, ring: int, since: int, at: Moment) -> float:
        """Returns the seconds that a ring has waited, at this moment; 0 at the first look. Raises DiskError and
        FormatError.
        """
        place = (self.state or state_folder()) / FOLDER
        private_folder(place)
        name = hashlib.sha256(f"{self.folder.resolve()} {rollout}".encode()).hexdigest()[:16]

        def look(before: Waited | None) -> Waited:
            if before is None or (before.ring, before.since) != (ring, since):
                return Waited(ring, since, 0.0, at)
            return Waited(ring, since, before.seconds + (at.since(before.seen) or 0.0), at)

        hint = "remove it; the time of the ring begins again"
        return Record(place / f"{name}.json", partial(from_json, Waited), hint, 4096).change(look).seconds
