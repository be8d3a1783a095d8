"""What a roll-out writes into a slot: bases, where they came from, and the trial of one.

a/origin.json     in a side: the roll-out that brought its base; none in the first one
a/adapter/        in a side: the adapter that came with it
trial.json        a base that is being tried: see Trial
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ....disk import alone, json_text, new_folder, read_object, replaced
from ....errors import EdgetuneError, FormatError, UsageError, shell_word
from ....formats.bundle import open_bundle, write_copy
from ....formats.gguf import ENCODERS
from ....formats.slot import LINK, SIDES, Slot, slot_of
from ....persisted import from_json
from ..uptime import UNKNOWN, Moment

ORIGIN = "origin.json"
ADAPTER = "adapter"
TRIAL = "trial.json"
PASSED = "passed"  # states of a trial: the gate let it pass
SWITCHED = "switched"  # the daemon is to answer with it
STARTED = "started"  # it does, and the probation runs
BACK = "back"  # the daemon is to answer with the base before
STATES = (PASSED, SWITCHED, STARTED, BACK)
REMOVE = "remove it, and start the daemon again"
MOST = 64 * 1024


@dataclass(frozen=True)
class BaseOrigin:
    """origin.json. rollout: its id. digest: of the base's model.gguf. base: its fingerprint."""

    rollout: str
    digest: str
    base: str


@dataclass(frozen=True)
class Trial:
    """trial.json. rollout: its id. to, before: the sides with the base that is tried, and with the one before. bases:
    their fingerprints, in this order. at: when the state began, seconds. reason: the gate's; of going back, why.
    failed: whether going back is a failure of the base, or a person undid it. waited: seconds of its probation that
    had passed at `seen`, the last look, by a clock that nobody sets.
    """

    rollout: str
    to: str
    before: str
    bases: list[str]
    state: str
    at: int
    reason: str
    verdict: dict[str, Any] = field(default_factory=dict)
    failed: bool = False
    waited: float = 0.0
    seen: Moment = UNKNOWN


def make_slot(model: Path, path: Path) -> Slot:
    """Makes a slot with this base. Raises errors of open_bundle, UsageError if the path exists, DiskError."""
    bundle = open_bundle(model)
    refuse_encoder(bundle.gguf.architecture, str(model))
    with new_folder(path) as beside:
        (beside / SIDES[0]).mkdir()
        write_copy(bundle, beside / SIDES[0])
        (beside / LINK).symlink_to(SIDES[0])
    return Slot(path)


def refuse_encoder(architecture: str, name: str) -> None:
    """Raises UsageError for an encoder, which does not answer without heads."""
    if architecture in ENCODERS:
        raise UsageError(f"{name} is an encoder, and a slot holds a model that writes text", "roll out its adapter")


def read_origin(side: Path) -> BaseOrigin | None:
    """Returns the origin of a side's base; None: no roll-out brought it. Raises FormatError."""
    found = read_object(side / ORIGIN, REMOVE, MOST)
    return None if found is None else from_json(BaseOrigin, found, str(side / ORIGIN))


def write_origin(side: Path, origin: BaseOrigin) -> None:
    (side / ORIGIN).write_text(json.dumps(asdict(origin), indent=1) + "\n")


def read_trial(slot: Slot) -> Trial | None:
    """Returns the base that is being tried; None: none is. Raises FormatError."""
    path = slot.path / TRIAL
    found = read_object(path, REMOVE, MOST)
    if found is None:
        return None
    trial = from_json(Trial, found, str(path))
    if trial.state not in STATES or {trial.to, trial.before} != set(SIDES) or len(trial.bases) != 2:
        raise FormatError(f"{path} is no trial of a base", REMOVE)
    return trial


def write_trial(slot: Slot, trial: Trial) -> None:
    """Raises DiskError."""
    with replaced(slot.path / TRIAL) as beside:
        beside.write_text(json_text(asdict(trial), indent=1) + "\n", encoding="utf-8")


def end_trial(slot: Slot) -> None:
    (slot.path / TRIAL).unlink(missing_ok=True)


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
