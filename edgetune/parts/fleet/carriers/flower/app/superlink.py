"""SuperLink, of which other machines reach only the part for nodes."""

from __future__ import annotations

from flwr.superlink import main as superlink_main
from flwr.superlink.cli import flower_superlink

from .fleet_alone import FleetAlone


def main() -> None:
    create = superlink_main.create_app
    superlink_main.create_app = lambda *given, **named: FleetAlone(create(*given, **named))
    flower_superlink()
