"""What a roll-out writes into a slot: bases, where they came from, and the trial of one.

    a/origin.json     in a side: the roll-out that brought its base; none in the first one
    a/adapter/        in a side: the adapter that came with it
    trial.json        a base that is being tried: see Trial
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ....disk import json_text, new_folder, read_object, replaced
from ....errors import FormatError, UsageError
from ....formats.bundle import open_bundle, write_copy
from ....formats.gguf import ENCODERS
from ....formats.slot import LINK, SIDES, Slot
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

