"""Who owns a slot on a device: may write bases into it, and restarts the daemon that serves it."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ....disk import alone
from ....errors import EdgetuneError, UsageError, shell_word
from ....formats.slot import Slot, slot_of


@dataclass(frozen=True)
class Owner:
    """What a look may do with a slot. restart: restarts the daemon, or raises EdgetuneError. wait: seconds in which it
    must answer then. links: whether files of the artifact are this device's own, which the slot may share.
    """

    slot: Slot
    restart: Callable[[], None]
    wait: float
    links: bool = False


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
    """Runs the command. Raises EdgetuneError if it fails or takes too long."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=seconds)
    except (OSError, subprocess.SubprocessError) as error:
        raise EdgetuneError(f"{command[0]} cannot restart the daemon: {error}", "mend --restart") from None
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise EdgetuneError(f"{command[0]} ended with the code {done.returncode}: {said:.200}", "look at the daemon's "
                            "log")
