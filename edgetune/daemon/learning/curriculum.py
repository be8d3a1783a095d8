"""The order in which a job learns its rows.

All rows that were learned before come first, once, the oldest first. Several passes over the new rows follow, each
mixed with earlier ones. The number of new rows decides the number of passes. So they are learned however many earlier
rows there are, and the gate can tell whether they help. Each feedback job starts from the base, so it must relearn what
the active adapter knows: it trains on earlier rows for as many steps as the job before, and on the new rows too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from ...data.rows import as_messages
from ...training.config import TrainConfig
from ...training.length import LARGEST_BATCH, MOST_EPOCHS, epochs_of, is_auto
from .feedback import Feedback, StoredRow
from .file_rows import FileRow
from .items import FeedbackItem, Row
from .row_kinds import ANSWERS

T = TypeVar("T")
MIN_PASSES = 2
MIN_STEPS = 300  # of the largest batch


def passes_over(new: int, config: TrainConfig) -> int:
    """Returns the number of passes over this number of new rows: by the options, with auto MIN_PASSES at least."""
    return max(MIN_PASSES if is_auto(config) else 1, round(epochs_of(config, new)))


def least_rows(different: int, config: TrainConfig) -> int:
    """Returns the least number of rows that a job with this number of different ones trains on, where the data decides:
    those of MIN_STEPS, and each MOST_EPOCHS times at most. Else 0.
    """
    return min(MOST_EPOCHS * different, MIN_STEPS * LARGEST_BATCH) if is_auto(config) else 0


def curriculum(new: Sequence[T], earlier: Sequence[T], passes: int, replay: float, seed: int, least: int = 0,
               least_earlier: int = 0) -> list[T]:
    """Returns the rows of a job in order. passes: over new rows. replay: earlier rows mixed with each new one, more of
    them where they would be fewer than `least_earlier` in all, and more passes where all would be fewer than `least`.
    """
    dice = random.Random(seed)
    missing = least_earlier - len(earlier)
    mixed = min(len(earlier), max(round(replay * len(new)), -(-missing // passes)))
    passes = max(passes, -(-(least - len(earlier)) // (len(new) + mixed)))
    rows = [*earlier]
    for _ in range(passes):
        block = [*new, *dice.sample(earlier, mixed)]
        dice.shuffle(block)
        rows += block
    return rows


class JobRows:
    """Rows to iterate over as often as needed. Each is read when its turn comes; `made` makes rows of a piece of
    feedback.

    Right answers have one shape, except text: where some are messages, prompts and completions become messages.
    are_answers: whether rows of files are right answers.
    """

    def __init__(self, feedback: Feedback, rows: Iterable[StoredRow | FileRow],
                 made: Callable[[FeedbackItem], Iterable[Row]] = ANSWERS.learned, are_answers: bool = True) -> None:
        self.feedback = feedback
        self.rows = [*rows]
        self.made = made
        self.are_answers = are_answers
        self.is_chat = any(row.is_chat for row in self.rows)

    def __iter__(self) -> Iterator[Row]:
        for stored in self.rows:
            if isinstance(stored, FileRow):
                row = stored.read()
                yield as_conversation(row) if self.is_chat and self.are_answers else row
                continue
            item = self.feedback.item(stored)
            for row in self.made(item):
                yield as_conversation(row) if self.is_chat and row is item.row else row


def as_conversation(row: Row) -> Row:
    """Returns a row of prompt and completion as one of messages, another as it is."""
    if "completion" not in row:
        return row
    others = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
    return {**others, "messages": as_messages(row["prompt"], row["completion"])}
