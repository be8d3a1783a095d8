"""fleet follow, fleet lead: rounds in a folder that all devices see, or that a daemon serves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ....cli.app import RowsPath, command, governor_of, show, stop_on_signals, train_progress
from .rounds import BASE, DEVICE_OPTIONS, KEY, URLS, answer_line, fleet, noise_of, round_json, round_lines

if TYPE_CHECKING:
    from ..carriers.copies import HttpMember
    from ..carriers.folder import Member

FOLDER = click.argument("folder", type=click.Path(path_type=Path))
FOLDER_SECONDS, URL_SECONDS = 60.0, 300.0
JOINED_AT = click.option("--joined", "joined_at", default="", metavar="URL",
                         help="In a folder: sign by the key of the fleet at URL.")
EVERY = click.option("--every", type=click.FloatRange(0.1), default=FOLDER_SECONDS, show_default=True,
                     help="Seconds between two looks at the folder.")


@command("follow", click.argument("folder"), click.argument("rows", type=RowsPath()), BASE,
         click.option("--every", type=click.FloatRange(0.1),
                      help=f"Seconds between two looks [{FOLDER_SECONDS:.0f}, at a URL {URL_SECONDS:.0f}]."),
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
    from ..carriers.folder import Member, again
    governor = governor_of(policy_file, options)  # takes its options away
    asked = noise_of(noise, noise_norm)
    bundle = open_bundle(model)
    answered: list[int] = []
    with ExitStack() as opened, stop_on_signals() as should_stop, train_progress(as_json) as progress:
        if joined_at:
            device, key = member_at(joined_at, folder, device, key)
        copy, name, carried = _opened(folder, device, lead_key_file, key, opened)
        own = Member(copy, bundle, rows, name, state_folder() / "fleet", held_out, rank, asked, key, options)
        member = carried(own) if carried else own

        def look() -> bool:
            while found := member.answer(RunCallbacks(progress.event, should_stop, governor)):
                number = found.place.number
                tell(as_json)(answer_line(found.place.answers / name, number, found.facts))
                answered.append(number)
                if len(answered) == rounds > 0:
                    return True
            return False

        again(look, every or (URL_SECONDS if carried else FOLDER_SECONDS), should_stop, tell(as_json))
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
    from ..carriers.folder import RoundLead, again
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


def member_at(url: str, folder: str, device: str, key: Path | None) -> tuple[str, Path]:
    """(the device's name in the fleet at a URL, the file of the key by which it signs there)"""
    from ....errors import UsageError
    from ..membership.device import SIGNING, name_at
    if folder.startswith(URLS) or key:
        what = "--sign is given, too" if key else f"{folder} is a URL, where the device signs by itself"
        raise UsageError(f"--joined is given, and {what}", "leave one of them out")
    name, found = name_at(url, None, device)
    if found is None:
        raise UsageError(f"this device has not joined {url}", "join first: edgetune fleet join URL --code CODE")
    return name, found.folder / SIGNING


def _opened(folder: str, device: str, lead_key_file: Path | None, key: Path | None,
            opened: ExitStack) -> tuple[Path, str, Callable[[Member], HttpMember] | None]:
    """(the folder on this device, the device's name, what carries it from a daemon: None: it is the folder itself)"""
    from ....errors import UsageError
    from ..membership.device import device_name
    if not folder.startswith(URLS):
        if lead_key_file:
            raise UsageError(f"--lead-key-file is given, and {folder} is no URL", "leave it out")
        return Path(folder), device or device_name(), None
    from functools import partial

    from ..carriers.copies import HttpMember
    from ..carriers.http.child import RoundsInChild
    from ..membership.device import name_at
    from ..rollout.http import copy_of
    name, joined = name_at(folder, lead_key_file, device)
    if joined and key:
        raise UsageError(f"--sign is given, and this device signs by the key with which it joined {folder}",
                         "leave --sign out")
    server = opened.enter_context(RoundsInChild(folder, lead_key_file, name))
    return copy_of(folder, name), name, partial(HttpMember, server)


def tell(as_json: bool) -> Callable[[str], object]:
    """Says a line to a person; with --json nothing, because stdout has the result alone."""
    def say(line: str) -> None:
        if not as_json:
            show(False, {}, line)

    return say
