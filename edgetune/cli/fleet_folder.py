"""fleet follow, fleet lead: rounds in a folder that all devices see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .app import RowsPath, command, governor_of, show, stop_on_signals, train_progress
from .fleet import BASE, DEVICE_OPTIONS, KEY, answer_line, fleet, noise_of, round_json, round_lines

FOLDER = click.argument("folder", type=click.Path(path_type=Path))
EVERY = click.option("--every", type=click.FloatRange(0.1), default=60.0, show_default=True,
                     help="Seconds between two looks at the folder.")


@command("follow", FOLDER, click.argument("rows", type=RowsPath()), BASE, EVERY,
         click.option("--rounds", type=click.IntRange(0), default=0, help="Stop after this many answers; 0: never."),
         *DEVICE_OPTIONS, group=fleet)
def fleet_follow(folder: Path, rows: Path, model: Path, every: float, rounds: int, held_out: str | None, device: str,
                 rank: int, noise: float | None, noise_norm: float, key: Path | None, policy_file: Path | None,
                 as_json: bool, **options: Any) -> None:
    """Answer each round in a FOLDER with ROWS.

    FOLDER is carried by anything, such as a sync. ROWS are read again each round. Nothing is sent but the answer's
    folder; checkpoints are not in FOLDER. Ctrl-C stops; the same command continues.
    """
    from ..disk import state_folder
    from ..fleet.carriers.folder import Member, again
    from ..fleet.device import device_name
    from ..formats.bundle import open_bundle
    from ..training.callbacks import RunCallbacks
    governor = governor_of(policy_file, options)  # takes its options away
    member = Member(folder, open_bundle(model), rows, device or device_name(), state_folder() / "fleet", held_out, rank,
                    noise_of(noise, noise_norm), key, options)
    answered: list[int] = []
    with stop_on_signals() as should_stop, train_progress(as_json) as progress:
        def look() -> bool:
            found = member.answer(RunCallbacks(progress.event, should_stop, governor))
            if found is not None:
                place, facts = found
                answered.append(place.number)
                tell(as_json)(answer_line(place.answers / member.device, place.number, facts))
            return len(answered) == rounds > 0

        again(look, every, should_stop, tell(as_json))
    show(as_json, {"device": member.device, "answered": answered}, f"{len(answered)} rounds answered")


@command("lead", FOLDER, BASE, EVERY,
         click.option("--rounds", type=click.IntRange(1), default=10, show_default=True,
                      help="Rounds to end; the task after the last one has the adapter."),
         click.option("--devices", type=click.IntRange(1), default=1, show_default=True,
                      help="Answers that end a round."),
         click.option("--wait", type=click.FloatRange(0.0), default=86400.0, show_default=True,
                      help="Seconds after which the quorum of the task is enough."), KEY, group=fleet)
def fleet_lead(folder: Path, model: Path, every: float, rounds: int, devices: int, wait: float, key: Path | None,
               as_json: bool) -> None:
    """End the rounds in a FOLDER and write their next tasks.

    One device of the fleet does it; it may also follow. Ctrl-C stops; the same command continues.
    """
    from ..fleet.carriers.folder import Lead, again
    from ..formats.bundle import open_bundle
    leader = Lead(folder, open_bundle(model), devices, wait, key)
    ended: list[dict[str, Any]] = []

    def look() -> bool:
        found = leader.end_round()
        if found is not None:
            ended.append(round_json(found))
            if not as_json:
                show(False, {}, *round_lines(found))
        return len(ended) == rounds

    with stop_on_signals() as should_stop:
        again(look, every, should_stop, tell(as_json))
    show(as_json, {"rounds": ended}, f"{len(ended)} rounds ended")


def tell(as_json: bool) -> Callable[[str], object]:
    """Says a line to a person; with --json nothing, because stdout has the result alone."""
    def say(line: str) -> None:
        if not as_json:
            show(False, {}, line)

    return say
