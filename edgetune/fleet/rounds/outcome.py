"""What became of a round, for people: round.json in the next task, which devices do not need.

It says which devices counted, with their losses and kinds, and which answers were left out and why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...disk import MIB, json_text, read_small
from ...errors import FormatError
from ...persisted import from_json
from ..signed_folder import AGAIN
from ..sums.screening import LeftOut

VERSION = 1
FILE = "round.json"
MOST_BYTES = 16 * MIB


@dataclass(frozen=True)
class Outcome:
    """round.json. round: its number. devices: a line for each device that counted, as of `devices_table`.
    left_out: `device` and `reason` of each answer that did not count.
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
    """The outcome of the round before a task's; None where the task has none. Raises FormatError."""
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
    return found


def losses_by_kind(found: Outcome) -> list[KindLoss]:
    """The losses of a round by the kind of device, ordered by name. Devices that say none are of the kind ""."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for device in found.devices:
        kinds.setdefault(str(device.get("kind", "")), []).append(device)
    return [KindLoss(kind, len(devices), _mean(devices, "loss_before"), _mean(devices, "loss_after"))
            for kind, devices in sorted(kinds.items())]


def _mean(devices: Sequence[Mapping[str, Any]], name: str) -> float | None:
    measured = [one for one in devices if one.get("loss_before") is not None and one.get("loss_after") is not None]
    rows = sum(one["held_rows"] for one in measured)
    return sum(one[name] * one["held_rows"] for one in measured) / rows if rows else None
