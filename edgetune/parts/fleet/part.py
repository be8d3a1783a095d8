"""A fleet: devices that learn together in rounds, and that get adapters and bases by roll-outs."""

from ...manifest import Manifest
from .carriers.registry import carriers

CARRIERS = carriers()
COMMANDS = ("commands.rounds", "commands.members", "commands.status", "commands.rollout",
            *(place for one in CARRIERS for place in one.places(one.commands)))
MANIFEST = Manifest(
    name="fleet",
    commands={"Fleet": {"fleet": " ".join(COMMANDS)}},
    options="options:FleetOptions",
    running="running:RunningFleet",
    device="api.schemas:FleetFacts",
    routes=("api.routes", *(place for one in CARRIERS for place in one.places(one.routes))),
    kinds=("bases.job",),
    panel=True,
    packages=tuple(package for one in CARRIERS for package in one.packages),
)
