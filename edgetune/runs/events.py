"""The lines of a run's metrics.jsonl, checked one by one: whatever edgetune wrote them, and while the run still writes.

A line that is damaged is None. Any number of lines is read in the memory of one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..disk import open_regular
from ..errors import DiskError
from ..training.metrics import NAME

LONGEST = 1 << 16  # bytes of a line


@dataclass(frozen=True)
class Step:
    """An optimizer step. tokens: computed; rss_mib: memory after it; metrics: of its objective, by TRL's names."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    tokens_per_s: float
    seconds: float
    rss_mib: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def reward(self) -> float | None:
        """The mean of the answers that it learned from; None where it did not answer."""
        return self.metrics.get("reward")


@dataclass(frozen=True)
class Measurement:
    """The loss on the held-out rows after a number of steps, and the metrics of the objective on them."""

    step: int
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What the governor decided after a number of steps. action: go, slower, pause or yield."""

    step: int
    action: str
    cause: str


@dataclass(frozen=True)
class Resumption:
    """The run was resumed after a number of steps. changed: names of what was changed then."""

    step: int
    changed: tuple[str, ...]


Event = Step | Measurement | Decision | Resumption


def read_events(folder: Path) -> Iterator[Event | None]:
    """The events of a run in their order; none where it has no metrics.jsonl. A last line that has not ended is left
    out: a running run may be writing it. A step or a measurement that does not follow the one before is damage, too;
    after a resumption a step may be measured again, on other rows.

    Raises DiskError where the file cannot be read.
    """
    last: dict[type, int] = {Step: 0, Measurement: -1}
    for line in _lines(folder / NAME):
        try:
            event = _event(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError):
            yield None
            continue
        if event is None:  # of a kind that is not shown
            continue
        kind = type(event)
        if kind in last and event.step <= last[kind]:
            yield None
            continue
        if kind in last:
            last[kind] = event.step
        if isinstance(event, Resumption):
            last[Measurement] = event.step - 1
        yield event


def _lines(path: Path) -> Iterator[bytes]:
    """The whole lines of a file; one that is too long is cut, which makes it damaged."""
    try:
        with open_regular(path) as file:
            while line := file.readline(LONGEST):
                if len(line) == LONGEST:
                    rest = line
                    while rest and not rest.endswith(b"\n"):
                        rest = file.readline(LONGEST)
                    yield line
                elif line.endswith(b"\n"):
                    yield line
    except FileNotFoundError:
        return
    except OSError as error:
        raise DiskError(f"cannot read {path}: {error.strerror}", "let it be read") from None


def _event(line: Any) -> Event | None:
    """Raises KeyError, TypeError or ValueError for a line that does not say what its kind must."""
    kind = line["event"]
    if kind == "step":
        return Step(_count(line, "step"), _number(line, "loss"), _number(line, "lr"), _number(line, "grad_norm"),
                    _count(line, "tokens"), _number(line, "tokens_per_s"), _number(line, "seconds"),
                    _number(line, "rss_mib"), _metrics(line))
    if kind == "eval":
        return Measurement(_count(line, "step"), _number(line, "loss"), _metrics(line))
    if kind == "governor":
        return Decision(_count(line, "step"), _text(line["action"]), _text(line["cause"]))
    if kind == "resume":
        return Resumption(_count(line, "step"), tuple(_text(change["name"]) for change in line["changed"]))
    return None


def _count(line: dict[str, Any], name: str) -> int:
    value = line[name]
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise ValueError(name)
    return value


def _number(line: dict[str, Any], name: str) -> float:
    value = line[name]
    if type(value) not in (int, float):
        raise ValueError(name)
    return float(value)


def _metrics(line: dict[str, Any]) -> Mapping[str, float]:
    metrics = line.get("metrics")
    return {name: _number(metrics, name) for name in metrics} if isinstance(metrics, dict) else {}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value
