"""The slot that a daemon serves: how its base came, what came with it, ratings since, and who restarts the daemon."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....daemon.state.adapters import Adapters
from ....daemon.state.bases import arrive
from ....disk import alone
from ....errors import EdgetuneError, UsageError, shell_word
from ....formats.slot import slot_of
from ..rollout.base_look import Owner
from ..rollout.slots import ADAPTER, read_origin

if TYPE_CHECKING:
    from ....daemon.service import Service

PASSED = "the gate let it pass together with its base"


@dataclass(frozen=True)
class Arrival:
    """rollout: that brought the base. since: when it was opened first, in seconds."""

    rollout: str
    since: int


def arrival(side: Path, adapters: Adapters) -> Arrival | None:
    """Activates what came with the base in this side of a slot, when it is opened first. None: no roll-out brought it.
    Raises errors of add_foreign, so that a daemon does not answer with half of what was evaluated.
    """
    origin = read_origin(side)
    if origin is None:
        return None
    brought = side / ADAPTER
    since = arrive(adapters, brought if brought.is_dir() else None, f"its base came by the roll-out {origin.rollout}",
                   PASSED)
    return Arrival(origin.rollout, since)


def slot_facts(service: Service) -> dict[str, Any] | None:
    """Returns the slot for /v1/device."""
    if service.slot is None:
        return None
    facts: dict[str, Any] = {"path": str(service.slot.path.resolve())}
    if came := service.came:
        facts |= {"rollout": came.rollout, "since": came.since, **service.probations.ratings_since(came.since)}
    return facts


# ---- for who owns it ------------------------------------------------------------------------------------------------


@contextmanager
def owned(path: Path | None, restart: str, wait: float, links: bool) -> Iterator[Owner | None]:
    """Yields the owner of a slot, held against other processes; None: no path is given. restart: a command. wait,
    links: as of Owner. Raises UsageError for no slot or no command, and while another process owns it.
    """
    if path is None:
        if restart:
            raise UsageError("--restart is given without --base-slot", "give both, or neither")
        yield None
        return
    slot = slot_of(path)
    if slot is None:
        raise UsageError(f"{path} is no slot", f"edgetune fleet slot MODEL {shell_word(path)} makes one")
    if not shlex.split(restart):
        raise UsageError("--base-slot is given without --restart", "give the command that restarts the daemon, such as "
                         "'systemctl restart edgetune'")
    with alone(path):
        yield Owner(slot, partial(_restart, shlex.split(restart), wait), wait, links)


def _restart(command: list[str], seconds: float) -> None:
    """Runs the command. Raises EdgetuneError where it fails or takes too long."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=seconds)
    except (OSError, subprocess.SubprocessError) as error:
        raise EdgetuneError(f"{command[0]} cannot restart the daemon: {error}", "mend --restart") from None
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise EdgetuneError(f"{command[0]} ended with the code {done.returncode}: {said:.200}", "look at the daemon's "
                            "log")
