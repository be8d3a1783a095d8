"""What became of a round, for people: round.json in the next task, which devices do not need.

It says which devices counted, with their losses and kinds, and which answers were left out and why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ....disk import MIB, json_text, read_small
from ....errors import FormatError
from ....persisted import from_json
from ..signed_folder import AGAIN
from ..sums.screening import LeftOut

VERSION = 1
FILE = "round.json"
MOST_BYTES = 16 * MIB
MOST_ROWS = 10**12


@dataclass(frozen=True)
class DeviceOutcome:
    """A device that counted. share: of its update in the sum; norm: of the update, and in medians of all; clipped:
    whether it was scaled down. The others are as of AnswerFacts.
    """

    device: str
    share: float = 0.0
    norm: float = 0.0
    of_median: float = 1.0
    clipped: bool = False
    kind: str = ""
    rows: int = 0
    tokens: int = 0
    held_rows: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    noise: float = 0.0
    seconds: float = 0.0
    peak_mib: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """round.json. round: its number. devices: the fields of DeviceOutcome of each that counted. left_out: `device` and
    `reason` of each answer that did not.
    """

    version: int
    round: int
    devices: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class KindLoss:
    """The mean losses of the devices of one kind, by their held-out rows. None: none of them measured any."""

    kind: str
    devices: int
    loss_before: float | None
    loss_after: float | None


def outcome_of(number: int, devices: Sequence[Mapping[str, Any]], left_out: Sequence[LeftOut]) -> Outcome:
    return Outcome(VERSION, number, [*map(dict, devices)], [vars(one) for one in left_out])


def write_outcome(path: Path, found: Outcome) -> None:
    path.write_text(json_text(vars(found), indent=1) + "\n", encoding="utf-8")


def read_outcome(task: Path) -> Outcome | None:
    """Returns the outcome of the round before a task's; None if the task has none. Raises FormatError."""
    path = task / FILE
    try:
        raw = read_small(path, MOST_BYTES)
        found = from_json(Outcome, json.loads(raw), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"cannot read {path}: {error}", AGAIN) from None
    if found.version != VERSION:
        raise FormatError(f"{path} is of version {found.version}, this edgetune reads {VERSION}", "update edgetune")
    devices = [asdict(from_json(DeviceOutcome, one, f"a device in {path}")) for one in found.devices]
    left_out = [vars(from_json(LeftOut, one, f"a device in {path}")) for one in found.left_out]
    if wrong := [one["device"] for one in devices if not 0 <= one["held_rows"] <= MOST_ROWS]:
        raise FormatError(f"{path} has a number of rows of {wrong[0]:.70} that is none", AGAIN)
    return replace(found, devices=devices, left_out=left_out)


def losses_by_kind(found: Outcome) -> list[KindLoss]:
    """Returns the losses of a round by the kind of device, ordered by name. Devices that say none are of the kind "".
    """
    kinds: dict[str, list[dict[str, Any]]] = {}
    for device in found.devices:
        kinds.setdefault(str(device.get("kind", "")), []).append(device)
    return [KindLoss(kind, len(devices), _mean(devices, "loss_before"), _mean(devices, "loss_after"))
            for kind, devices in sorted(kinds.items())]


def _mean(devices: Sequence[Mapping[str, Any]], name: str) -> float | None:
    measured = [one for one in devices if one.get("loss_before") is not None and one.get("loss_after") is not None]
    rows = sum(one["held_rows"] for one in measured)
    return sum(one[name] * one["held_rows"] for one in measured) / rows if rows else None
