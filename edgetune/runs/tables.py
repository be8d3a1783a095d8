"""The steps and measurements of a run as a table: metrics.csv for spreadsheets, step_metrics.csv as OpenAI has it.

The lines of metrics.jsonl are checked one by one: whatever edgetune wrote them, and while the run still writes. A line
that is damaged is None. Any number of lines is read in the memory of one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..disk import open_regular, replaced
from ..errors import DiskError
from ..training.metrics import CSV, NAME

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
class GovernorDecision:
    """What the governor decided after a number of steps. action: go, slower, pause or yield."""

    step: int
    action: str
    cause: str


@dataclass(frozen=True)
class Resumption:
    """The run was resumed after a number of steps. changed: names of what was changed then."""

    step: int
    changed: tuple[str, ...]


Event = Step | Measurement | GovernorDecision | Resumption


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
        return GovernorDecision(_count(line, "step"), _text(line["action"]), _text(line["cause"]))
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


COLUMNS = ("step", "train_loss", "valid_loss", "learning_rate", "grad_norm", "tokens", "tokens_per_s", "memory_mib")
OPENAI_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
OPENAI_REWARDS = ("train_mean_reward", "full_valid_mean_reward")  # of a run that learns from rewards
EVAL = "eval_"  # TRL's prefix of a metric that is measured on held-out rows
MOST = 10_000  # rows of step_metrics.csv, of which a daemon keeps many
Line = tuple[Any, ...]


@dataclass(frozen=True)
class Row:
    """What is known of the state after a number of steps; 0: before the first."""

    step: int
    trained: Step | None
    measured: Measurement | None

    @property
    def valid_loss(self) -> float | None:
        return self.measured.loss if self.measured else None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the objective, by TRL's names."""
        of_step = self.trained.metrics if self.trained else {}
        held_out = self.measured.metrics if self.measured else {}
        return {**of_step, **{f"{EVAL}{name}": value for name, value in held_out.items()}}


def read_rows(folder: Path) -> Iterator[Row]:
    """A row for each step, with the held-out loss where it was measured after it, and one before the first step."""
    last: Row | None = None
    for event in read_events(folder):
        if isinstance(event, Measurement) and last and last.step == event.step:
            last = Row(last.step, last.trained, event)
        elif isinstance(event, Step | Measurement):
            if last:
                yield last
            last = Row(event.step, event, None) if isinstance(event, Step) else Row(event.step, None, event)
    if last:
        yield last


def write_metrics(folder: Path) -> None:
    """metrics.csv (RFC 4180) in a run's folder, whole or not at all. Raises DiskError."""
    with replaced(folder / CSV) as beside:
        write_csv(beside, COLUMNS, map(_line, read_rows(folder)))


def write_csv(path: Path, columns: Line, lines: Iterable[Line]) -> int:
    """Returns the number of lines below the header. None becomes an empty field."""
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for line in lines:
            writer.writerow(line)
            count += 1
    return count


def _line(row: Row) -> Line:
    step = row.trained
    if step is None:
        return row.step, None, row.valid_loss, None, None, None, None, None
    return (row.step, step.loss, row.valid_loss, step.lr, step.grad_norm, step.tokens, step.tokens_per_s,
            step.rss_mib)


def write_step_metrics(folder: Path, path: Path) -> int:
    """OpenAI's table of a run's steps; accuracies are not measured. After its columns come those of rewards, where the
    run learns from them, and the metrics of its objective by TRL's names. Of more than MOST rows every second, third,
    ... is written, and the last. Returns the number of rows.
    """
    count = 0
    names: dict[str, None] = {}  # in the order in which they occur
    for row in read_rows(folder):
        count += 1
        names.update(dict.fromkeys(row.metrics))
    every = -(-count // MOST)
    rewards = OPENAI_REWARDS if {"reward", f"{EVAL}reward"} & names.keys() else ()
    kept = (row for number, row in enumerate(read_rows(folder)) if number % every == 0 or number == count - 1)
    return write_csv(path, (*OPENAI_COLUMNS, *rewards, *names), (_openai_line(row, rewards, names) for row in kept))


def _openai_line(row: Row, rewards: Iterable[str], names: Iterable[str]) -> Line:
    """The held-out loss of a run that learns from rewards is less the mean reward, which has its own column."""
    metrics = row.metrics
    found = dict(zip(rewards, (metrics.get("reward"), metrics.get(f"{EVAL}reward")), strict=False))
    return (row.step, row.trained.loss if row.trained else None, None, None if found else row.valid_loss, None,
            *found.values(), *(metrics.get(name) for name in names))
