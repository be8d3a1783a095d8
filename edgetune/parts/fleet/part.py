"""A fleet: devices that learn together in rounds, and that get adapters and bases by roll-outs."""

from ...manifest import Extra, Manifest

MANIFEST = Manifest(
    name="fleet",
    commands={"Train": {"fleet": "commands.rounds commands.roles commands.members commands.privacy commands.status "
                                 "commands.rollout carriers.flower.commands"}},
    options="options:FleetOptions",
    running="running:RunningFleet",
    device="api.schemas:FleetFacts",
    routes=("api.base", "api.rollouts", "api.members", "api.status", "carriers.http.routes"),
    kinds=("bases.job",),
    panel=True,
    extras=(Extra("flower", "edgetune fleet server and edgetune fleet node", ("flwr",)),),
)
