"""fleet follow, fleet lead: the two roles in rounds that a carrier brings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from ....cli.app import RowsPath, command, governor_of, show, stop_on_signals, train_progress
from ..carriers.registry import RoundAddress, carrier_of, carriers
from .rounds import BASE, DEVICE_OPTIONS, KEY, answer_line, fleet, noise_of, round_json, round_lines

SECONDS = ", ".join(f"{one.name} {one.seconds:.0f}" for one in carriers() if one.schemes)
FOLDER = click.argument("folder", type=click.Path(path_type=Path))
JOINED_AT = click.option("--joined", "joined_at", default="", metavar="URL",
                         help="In a folder: sign by the key of the fleet at URL.")
EVERY = click.option("--every", type=click.FloatRange(0.1), default=60.0, show_default=True,
                     help="Seconds between two looks at the folder.")


@command("follow", click.argument("folder"), click.argument("rows", type=RowsPath()), BASE,
         click.option("--every", type=click.FloatRange(0.1),
                      help=f"Seconds between two looks [{SECONDS}]."),
         click.option("--lead-key-file", type=click.Path(path_type=Path),
                      help="At a URL that this device has not joined: file with a key."),
         JOINED_AT,
         click.option("--rounds", type=click.IntRange(0), default=0, help="Stop after this many answers; 0: never."),
         *DEVICE_OPTIONS, group=fleet)
def fleet_follow(folder: str, rows: Path, model: Path, every: float | None, lead_key_file: Path | None, joined_at: str,
                 rounds: int, held_out: str | None, device: str, rank: int, noise: float | None, noise_norm: float,
                 key: Path | None, policy_file: Path | None, as_json: bool, **options: Any) -> None:
    """Answer each round in a FOLDER with ROWS.

    FOLDER is carried by anything, such as a sync, or is the URL of a daemon that serves one with --fleet. ROWS are read
    again each round. Nothing is sent but the answer's folder; checkpoints are not in FOLDER. Ctrl-C stops; the same
    command continues.
    """
    from ....disk import state_folder
    from ....formats.bundle import open_bundle
    from ....training.callbacks import RunCallbacks
    from ..carriers.copies import CopyMember
    from ..pauses import again
    from ..rounds.member import Member
    governor = governor_of(policy_file, options)  # takes its options away
    asked = noise_of(noise, noise_norm)
    bundle = open_bundle(model)
    answered: list[int] = []
    with ExitStack() as opened, stop_on_signals() as should_stop, train_progress(as_json) as progress:
        carrier = carrier_of(folder)
        found = carrier.open(RoundAddress(folder, device, key, joined_at, lead_key_file), opened)
        name = found.device
        own = Member(found.folder, bundle, rows, name, state_folder() / "fleet", held_out, rank, asked, found.key,
                     options)
        member = CopyMember(found.server, own) if found.server else own

        def look() -> bool:
            while made := member.answer(RunCallbacks(progress.event, should_stop, governor)):
                number = made.place.number
                tell(as_json)(answer_line(made.place.answers / name, number, made.facts))
                answered.append(number)
                if len(answered) == rounds > 0:
                    return True
            return False

        again(look, every or carrier.seconds, should_stop, tell(as_json))
    show(as_json, {"device": name, "answered": answered}, f"{len(answered)} rounds answered")


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
    from ....formats.bundle import open_bundle
    from ..pauses import again
    from ..rounds.lead import RoundLead
    leader = RoundLead(folder, open_bundle(model), devices, wait, key)
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
    """Says a line to a person; with --json nothing, because stdout has only the result."""
    def say(line: str) -> None:
        if not as_json:
            show(False, {}, line)

    return say
