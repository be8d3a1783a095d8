"""What looks of a device have in common, whatever is rolled out: its file, which it writes after each part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import rings
from .artifact import RolloutArtifact
from .folder import DeviceFile, write_device

MOST_DIGESTS = 100
NUMBERS = ("passed", "wins", "losses", "p", "alpha")  # of a verdict, in a device's file


@dataclass(frozen=True)
class About:
    """What a daemon says of itself. model: the fingerprint of its model; base, active, kind: as of DeviceFile."""

    model: str
    base: str
    active: str
    kind: str


class Look:
    """folder: where the device's file is; own: it, as it was written last. now: seconds."""

    def __init__(self, folder: Path, own: DeviceFile, now: int) -> None:
        self.folder = folder
        self.own = own
        self.now = now

    def say(self, execution: str = "", finished: str = rings.NOTHING, reason: str = "", **facts: Any) -> None:
        """Writes the file of the device, with another report if an execution is given."""
        if execution:
            facts |= {"execution": execution, "finished": finished, "reason": reason}
        number = max(self.own.number + 1, self.now)  # rises also if the file was lost
        self.own = replace(self.own, at=self.now, number=number, **facts)
        write_device(self.folder, self.own)


def superseded_by(own: DeviceFile, artifact: RolloutArtifact) -> dict[str, list[str]]:
    """Returns the digests of a device's file once it has this artifact."""
    replaced = dict.fromkeys([*own.superseded, *artifact.facts.supersedes])
    replaced.pop(artifact.digest, None)
    return {"superseded": [*replaced][-MOST_DIGESTS:],
            "installed": [*own.installed, artifact.digest][-MOST_DIGESTS:]}
