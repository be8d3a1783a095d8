"""The steps and measurements of a run as a table: metrics.csv for spreadsheets, step_metrics.csv as OpenAI has it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk import replaced
from ..training.metrics import CSV
from .events import Measurement, Step, read_events

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
