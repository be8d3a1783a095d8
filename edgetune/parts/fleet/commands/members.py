"""fleet invite, members, approve and revoke: what the owner of a fleet decides; join and rotate, on a device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from ....cli.app import Time, command, show, stop_on_signals
from ....cli.remote import format_time
from ....errors import shell_word
from .rounds import fleet

FOLDER = click.argument("folder", type=click.Path(path_type=Path))
DEVICE = click.argument("device")
URL = click.argument("url")


@command("invite", FOLDER,
         click.option("--expires", type=Time(), default="1h", show_default=True, help="Time in which it is valid."),
         group=fleet)
def fleet_invite(folder: Path, expires: int, as_json: bool) -> None:
    """Make a one-time code for a device.

    The device joins with it, and takes part once you approve it. From the first code on, what other devices send to
    the daemon of FOLDER does not count.
    """
    from ....errors import UsageError
    from ..membership.invites import MOST_SECONDS, invite
    if not 0 < expires <= MOST_SECONDS:
        raise UsageError(f"--expires is {expires} seconds", f"give up to {MOST_SECONDS // 86_400}d")
    now = int(time.time())
    code = invite(folder, now, expires)
    show(as_json, {"code": code, "expires_at": now + expires}, code,
         f"on the device, until {format_time(now + expires)}: edgetune fleet join URL --code {shell_word(code)}")


@command("members", FOLDER, group=fleet)
def fleet_members(folder: Path, as_json: bool) -> None:
    """List the devices that asked to join FOLDER."""
    from dataclasses import asdict

    from ....console import table
    from ..membership.members import read_members, shown_key
    found, wrong = read_members(folder)
    rows = [[one.device, one.state, shown_key(one.key), format_time(one.asked_at), format_time(one.decided_at or None)]
            for one in found.values()]
    show(as_json, {"devices": [asdict(one) for one in found.values()], "unreadable": wrong},
         table("", ["device", "state", "key", "asked", "decided"], rows, ()) if rows else "no device has asked to join",
         *wrong)


@command("approve", FOLDER, DEVICE, group=fleet)
def fleet_approve(folder: Path, device: str, as_json: bool) -> None:
    """Let DEVICE take part in the fleet of FOLDER.

    Compare the digits of its key with those that the device shows.
    """
    from ..membership.members import approve
    _say(approve(folder, device, int(time.time())), as_json)


@command("revoke", FOLDER, DEVICE, group=fleet)
def fleet_revoke(folder: Path, device: str, as_json: bool) -> None:
    """Let DEVICE take part no longer.

    What it has sent does not count from now on. It may join again with a new code.
    """
    from ..membership.members import revoke
    _say(revoke(folder, device, int(time.time())), as_json)


def _say(found: Any, as_json: bool) -> None:
    from ..membership.members import shown_key
    show(as_json, vars(found), f"{found.device} is {found.state}; its key begins with {shown_key(found.key)}")


@command("join", URL,
         click.option("--code", default="", help="One-time code, of edgetune fleet invite."),
         click.option("--device", default="", help="Name of this device in the fleet [drawn once and kept]."),
         click.option("--every", type=click.FloatRange(0.1), default=5.0, show_default=True,
                      help="Seconds between two questions whether it is approved."), group=fleet)
def fleet_join(url: str, code: str, device: str, every: float, as_json: bool) -> None:
    """Join the fleet that the daemon at URL serves.

    This device makes its key, sends the public one, and waits until the fleet's owner approves it. Ctrl-C stops;
    without --code, the same command continues.
    """
    from ....errors import MismatchError, UsageError
    from ..membership.device import device_name, joined
    from ..membership.lead import ask_to_join, state_of
    from ..membership.members import APPROVED, REVOKED, shown_key
    from ..pauses import again
    from .rounds import tell
    own = ask_to_join(url, code, device or device_name()) if code else joined(url)
    if own is None:
        raise UsageError(f"this device has not asked to join {url}", "give the code that its owner made with --code")
    tell(as_json)(f"{own.device} waits for its approval; its key begins with {shown_key(own.public())}")
    states: list[dict[str, Any]] = []

    def look() -> bool:
        states[:] = [state_of(url, own)]
        if states[0]["state"] == REVOKED:
            raise MismatchError(f"the fleet's owner refused {own.device}", "ask for another code")
        return bool(states[0]["state"] == APPROVED)

    with stop_on_signals() as should_stop:
        again(look, every, should_stop, tell(as_json))
    show(as_json, states[0], f"{own.device} is approved; take part: edgetune fleet follow {shell_word(url)} ROWS")


@command("rotate", URL, group=fleet)
def fleet_rotate(url: str, as_json: bool) -> None:
    """Replace the key by which this device signs.

    The old key signs the new one, and counts until the round ends.
    """
    from ....errors import UsageError
    from ..membership.device import joined
    from ..membership.lead import rotate
    from ..membership.members import shown_key
    own = joined(url)
    if own is None:
        raise UsageError(f"this device has not joined {url}", "join first: edgetune fleet join URL --code CODE")
    found = rotate(url, own)
    show(as_json, found, f"{own.device} has a new key, which begins with {shown_key(found['key'])}")
