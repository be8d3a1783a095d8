"""The commands of fleet for rounds that are summed in secret."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .app import command, show
from .fleet import BASE, KEY, TASK, DeviceKey, fleet, out_option, spent_json, spent_lines

if TYPE_CHECKING:
    from ..fleet.carriers.secret_lead import Summed

ANSWERS = click.argument("answers", type=click.Path(path_type=Path), nargs=-1, required=True)
REQUEST = click.option("--request", type=click.Path(path_type=Path), required=True, help="Folder of the request.")


@command("key", out_option("New file of the private key."), group=fleet)
def fleet_key(to: Path, as_json: bool) -> None:
    """Make the key of a device that sums in secret.

    It prints the public key, which whoever writes tasks needs. The private one stays on the device.
    """
    from ..fleet.secret.key import make_key
    public = make_key(to)
    show(as_json, {"out": str(to), "public_key": public}, public)


@command("request", TASK, ANSWERS, out_option("New folder of the request, for all devices."), BASE, KEY, group=fleet)
def fleet_request(task: Path, answers: tuple[Path, ...], to: Path, model: Path, key: Path | None,
                  as_json: bool) -> None:
    """Ask the devices for what uncovers the sum of ANSWERS.

    No device answers a second request for a round, so wait for all that shall count.
    """
    from ..errors import printable
    from ..fleet.rounds.task import open_task
    from ..fleet.secret.round import gather
    from ..formats.bundle import open_bundle
    answered, left_out = gather(open_task(task, open_bundle(model)), answers, to, key)
    show(as_json, {"out": str(to), "answered": answered, "refused": [vars(one) for one in left_out]},
         *(f"left out: {printable(one.device)}: {one.reason}" for one in left_out),
         f"{to} asks for the sum of {len(answered)} answers",
         f"on each device: edgetune fleet reveal {task} {to} --secret KEY -o REVEALED")


@command("reveal", TASK, click.argument("request", type=click.Path(path_type=Path)),
         click.option("--secret", type=DeviceKey(), required=True,
                      help="This device's key, or the URL that it joined."),
         out_option("New folder of the shares."), BASE, KEY, group=fleet)
def fleet_reveal(task: Path, request: Path, secret: Path, to: Path, model: Path, key: Path | None,
                 as_json: bool) -> None:
    """Reveal this device's shares for REQUEST.

    They uncover the sum of all answers, and none of them alone.
    """
    from ..fleet.rounds.task import open_task
    from ..fleet.secret.round import reveal
    from ..formats.bundle import open_bundle
    unopened = reveal(open_task(task, open_bundle(model)), request, secret, to, key)
    more = f"; the shares of {unopened} devices could not be opened" if unopened else ""
    show(as_json, {"out": str(to), "unopened": unopened}, f"{to} answers {request}{more}")


@command("sum", TASK, ANSWERS, REQUEST,
         click.option("--revealed", type=click.Path(path_type=Path), multiple=True, required=True,
                      help="Folder of a device's shares; once for each."),
         out_option("New folder of the next task, and of the adapter: OUT/adapter."), BASE, KEY, group=fleet)
def fleet_sum(task: Path, answers: tuple[Path, ...], request: Path, revealed: tuple[Path, ...], to: Path, model: Path,
              key: Path | None, as_json: bool) -> None:
    """Make the next task from the sum of ANSWERS.

    Only the sum becomes known, and how many tokens were learned in all.
    """
    from ..fleet.carriers.secret_lead import Summed
    from ..fleet.rounds.history import history_of
    from ..fleet.rounds.spent import spent
    from ..fleet.rounds.task import open_task
    from ..fleet.secret.round import write_next_of_sum
    from ..formats.bundle import open_bundle
    bundle = open_bundle(model)
    record, left_out = write_next_of_sum(open_task(task, bundle), bundle, answers, request, revealed, to, key)
    found = Summed(record, left_out, spent(history_of(to).records))
    show(as_json, {"out": str(to), **sum_json(found)}, *sum_lines(found),
         f"{to} is the task of round {record.round + 1}; ask its adapter: edgetune chat MODEL --adapter "
         f"{to / 'adapter'}")


def sum_json(found: Summed) -> dict[str, Any]:
    return {**vars(found.record), "refused": [vars(one) for one in found.left_out], "dropped": found.dropped,
            "privacy": spent_json(found.spent)}


def sum_lines(found: Summed) -> list[str]:
    """What a person is told of a round that was summed in secret."""
    from ..errors import printable, size_text
    record = found.record
    said = (f"round {record.round} is dropped: {found.dropped}; the next one begins from the same adapter"
            if found.dropped else f"round {record.round}: {record.devices} devices, {record.tokens} tokens; "
            f"{size_text(record.up)} up")
    return [*(f"left out: {printable(one.device)}: {one.reason}" for one in found.left_out), said,
            *spent_lines(found.spent)]
