"""Time that no setting of a clock changes: the kernel's, since the machine started, also while it slept.

A device without a battery for its clock starts in the past, and is set forward once it has a network. What waits for
hours or days counts by this time, and writes down from when.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")  # another one each time that the machine starts


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
