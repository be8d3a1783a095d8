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
MOST = 10_000  # rows of step_metrics.csv, of which a daemon keeps many
Line = tuple[Any, ...]


@dataclass(frozen=True)
class Row:
    """What is known of the state after a number of steps; 0: before the first."""

    step: int
    trained: Step | None
    valid_loss: float | None


def read_rows(folder: Path) -> Iterator[Row]:
    """A row for each step, with the held-out loss where it was measured after it, and one before the first step."""
    last: Row | None = None
    for event in read_events(folder):
        if isinstance(event, Measurement) and last and last.step == event.step:
            last = Row(last.step, last.trained, event.loss)
        elif isinstance(event, Step | Measurement):
            if last:
                yield last
            last = Row(event.step, event, None) if isinstance(event, Step) else Row(event.step, None, event.loss)
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
    """OpenAI's table of a run's steps; accuracies are not measured. Of more than MOST rows every second, third, ... is
    written, and the last. Returns the number of rows.
    """
    count = sum(1 for _ in read_rows(folder))
    every = -(-count // MOST)
    kept = (row for number, row in enumerate(read_rows(folder)) if number % every == 0 or number == count - 1)
    return write_csv(path, OPENAI_COLUMNS, ((row.step, row.trained.loss if row.trained else None, None, row.valid_loss,
                                             None) for row in kept))
