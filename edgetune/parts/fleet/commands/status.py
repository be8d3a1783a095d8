"""fleet status: the rounds so far, the newest roll-out, and the devices; fleet privacy: what noise hides."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ....cli.app import command, show
from .rounds import fleet, spent_lines

if TYPE_CHECKING:
    from ..privacy import NoiseSpent
    from ..status import FleetStatus, RolloutStatus, RoundHistory

DELTA_OPTION = click.option("--delta", type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True), default=1e-5,
                            show_default=True, help="Chance by which epsilon may not hold; far below 1 / devices.")


@command("privacy",
         click.option("--noise", type=click.FloatRange(0.0, min_open=True), help="Noise, as for edgetune fleet task."),
         click.option("--epsilon", type=click.FloatRange(0.0, min_open=True),
                      help="In place of --noise: find the noise by which all sums together have this epsilon."),
         click.option("--devices", type=click.IntRange(1), required=True, help="Devices in the fleet."),
         click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Rounds."),
         click.option("--share", type=click.FloatRange(0.0, 1.0, min_open=True), default=1.0, show_default=True,
                      help="Chance of each device to take part in a round, where nobody sees who does."),
         DELTA_OPTION, group=fleet)
def fleet_privacy(noise: float | None, epsilon: float | None, devices: int, rounds: int, share: float, delta: float,
                  as_json: bool) -> None:
    """Say what noise hides, by differential privacy.

    Epsilon compares what a device sends with an answer that changes nothing; between any two answers it is that of half
    the noise. Whoever sees only the sums sees the noise of all devices.
    """
    from ....errors import UsageError
    from ..privacy import multiplier_for, sampled_epsilon
    if (noise is None) == (epsilon is None):
        raise UsageError("--noise and --epsilon are both given, or neither is", "give one of them")
    root = math.sqrt(devices * share)
    noise = noise or multiplier_for(epsilon or 0.0, share, rounds, delta) / root
    found = {who: {"last": sampled_epsilon(multiplier, chance, 1, delta),
                   "total": sampled_epsilon(multiplier, chance, rounds, delta)}
             for who, multiplier, chance in (("answer", noise, 1.0), ("sum", noise * root, share))}
    show(as_json, {"noise": noise, "devices": devices, "rounds": rounds, "share": share, "delta": delta, **found},
         f"--noise {noise:.3g} on each of {devices} devices, delta {delta:g}",
         *(f"epsilon {one['last']:.3g} a round and {one['total']:.3g} in {rounds}, against whoever sees {whom}"
           for whom, one in (("the answers of a device", found["answer"]), ("the sums alone", found["sum"]))))


@command("status", click.argument("path", metavar="FOLDER", type=click.Path(path_type=Path)), DELTA_OPTION,
         group=fleet)
def fleet_status(path: Path, delta: float, as_json: bool) -> None:
    """Show the rounds and the roll-out in FOLDER.

    It may be that of a task, of rounds, of roll-outs, or of both. For rounds it shows the losses, also by kind of
    device, what was left out and why, and whose answers have arrived.
    """
    from ..privacy import spent
    from ..status import status_json
    found = _found(path)
    noise = spent(found.rounds.records, delta) if found.rounds else None
    lines: list[Any] = []
    if found.rounds:
        lines += rounds_lines(found.rounds, noise)
    if found.rollout:
        lines += rollout_lines(found.rollout)
    if found.devices:
        lines += devices_lines(found)
    if found.members:
        lines.append(f"devices that joined: {', '.join(f'{count} {state}' for state, count in found.members.items())}")
    show(as_json, status_json(found, delta), *lines, *_left_out(found.unreadable))


def _found(path: Path) -> FleetStatus:
    """Raises the errors of history_of where there are neither devices, roll-outs nor rounds."""
    from ..rounds.task import FACTS
    from ..signed_folder import is_whole
    from ..status import FleetStatus, history_of, status_of
    if is_whole(path, FACTS):
        return FleetStatus(rounds=history_of(path))
    found = status_of(path)
    if not (found.devices or found.rollout or found.rounds or found.unreadable):
        return FleetStatus(rounds=history_of(path))
    return found


def rounds_lines(rounds: RoundHistory, noise: NoiseSpent | None) -> list[Any]:
    """Returns what a person is told of rounds, and of what their noise hides."""
    from ....console import table
    from ....errors import printable, size_text
    from ..status import rounds_table
    heads = ["round", "devices", "left out", "tokens", "loss", "averages miss", "rank cuts", "up", "down"]
    lines = rounds_table(rounds)
    rows = [[str(one["round"]), str(one["devices"]), str(one["left_out"]), f"{one['tokens']:,}", _losses(one),
             "" if one["missed"] is None else f"{one['missed']:.1%}", f"{one['cut']:.1%}", size_text(one["up"]),
             size_text(one["down"])] for one in lines]
    kinds = [[str(one["round"]), printable(kind["kind"]) or "not said", str(kind["devices"]), _losses(kind)]
             for one in lines for kind in one["kinds"] if len(one["kinds"]) > 1]
    refused = [f"round {one['round']}: {left['device']}: {left['reason']}" for one in lines for left in one["refused"]]
    by_kind = [table("", ["round", "kind", "devices", "loss"], kinds, (0, 2))] if kinds else []
    return [table("", heads, rows, (0, 1, 2, 3, 5, 6, 7, 8)), *by_kind, *_left_out(refused), *spent_lines(noise),
            line_of(rounds)]


def rollout_lines(found: RolloutStatus) -> list[Any]:
    """Returns what a person is told of a roll-out."""
    from ....console import table
    from ..status import WORDS
    rows = [[str(i), "begun" if ring["begun"] else "", *(str(ring[word]) for word in ("devices", *WORDS))]
            for i, ring in enumerate(found.rings, start=1)]
    about = f": {found.reason}" if found.reason else ""
    return [table("", ["ring", "", "devices", *WORDS], rows, tuple(range(2, 3 + len(WORDS)))),
            f"{found.id}{', a base,' if found.kind == 'base' else ''} is {found.status}{about}"]


def devices_lines(found: FleetStatus) -> list[Any]:
    """Returns what a person is told of the devices."""
    from ....console import table
    from ....errors import printable
    rows = [[printable(str(one[name])) for name in ("device", "kind", "base", "active", "edgetune")]
            + [_ago(one["at"]), one["outcome"]] for one in found.devices]
    told = [printable(f"{one['device']}: {one['outcome']}: {one['reason']}") for one in found.devices
            if one["outcome"] in ("refused", "failed", "excluded")]
    return [table("", ["device", "kind", "model", "adapter", "edgetune", "seen", "roll-out"], rows), *told]


def _ago(at: int) -> str:
    """Returns the time since a device was seen."""
    import time

    from ....console import about
    return f"{about(max(time.time() - at, 0))} ago" if at else ""


def _losses(one: dict[str, Any]) -> str:
    before, after = one["loss_before"], one["loss_after"]
    return "" if before is None or after is None else f"{before:.3f} -> {after:.3f}"


def _left_out(reasons: list[str]) -> list[str]:
    from ....errors import printable
    return [f"left out: {printable(one)}" for one in reasons]


def line_of(found: RoundHistory) -> str:
    from ....errors import printable
    if found.arrived is None:
        return f"this is the task of round {found.number} of {printable(found.base)}"
    devices = f": {', '.join(map(printable, found.arrived))}" if found.arrived else ""
    return f"round {found.number} of {printable(found.base)}: {len(found.arrived)} answers have arrived{devices}"
