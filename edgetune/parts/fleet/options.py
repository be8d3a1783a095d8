"""The daemon's options of a fleet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...formats.signature import private_key
from ...manifest import PartOptions
from ...options import option


@dataclass(frozen=True)
class FleetOptions(PartOptions):
    """The options of a daemon that serves a fleet."""

    fleet: str = option("", "Folder of a fleet: devices fetch its rounds and roll-outs from this daemon, and send "
                        "their answers.", group="What it keeps")
    fleet_sign: str = option("", "Private Ed25519 key that signs orders of a roll-out: those by which rings begin by "
                             "themselves, and what is decided on the page.", group="What it keeps")

    def check_own(self) -> None:
        if self.fleet_sign:
            private_key(Path(self.fleet_sign).expanduser())  # a wrong file must be known before a roll-out is stopped
