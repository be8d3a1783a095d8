"""fleet status: the rounds so far."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .app import command, show
from .fleet import fleet, spent_json, spent_lines
from .fleet_privacy import DELTA_OPTION

if TYPE_CHECKING:
    from ..fleet.rounds.history import History
    from ..fleet.rounds.task import RoundRecord


@command("status", click.argument("path", metavar="TASK", type=click.Path(path_type=Path)), DELTA_OPTION, group=fleet)
def fleet_status(path: Path, delta: float, as_json: bool) -> None:
    """Show the rounds that led to TASK.

    TASK is the folder of a task, or a folder of rounds, of which the newest is shown with the answers that have
    arrived.
    """
    from ..console import table
    from ..fleet.rounds.history import history_of
    from ..fleet.rounds.spent import spent
    found = history_of(path)
    heads = ["round", "devices", "left out", "tokens", "loss", "averages miss", "rank cuts", "up", "down"]
    noise = spent(found.records, delta) if found.records else None
    show(as_json, {**asdict(found), "privacy": spent_json(noise)},
         table("", heads, [row_of(one) for one in found.records], (0, 1, 2, 3, 5, 6, 7, 8)), *spent_lines(noise),
         line_of(found))


def row_of(one: RoundRecord) -> list[str]:
    from ..errors import size_text
    measured = one.loss_before is not None and one.loss_after is not None
    return [str(one.round), str(one.devices), str(one.left_out), f"{one.tokens:,}",
            f"{one.loss_before:.3f} -> {one.loss_after:.3f}" if measured else "",
            "" if one.missed is None else f"{one.missed:.1%}", f"{one.cut:.1%}", size_text(one.up),
            size_text(one.down)]


def line_of(found: History) -> str:
    from ..errors import printable
    if found.arrived is None:
        return f"this is the task of round {found.number} of {printable(found.base)}"
    devices = f": {', '.join(map(printable, found.arrived))}" if found.arrived else ""
    return f"round {found.number} of {printable(found.base)}: {len(found.arrived)} answers have arrived{devices}"
