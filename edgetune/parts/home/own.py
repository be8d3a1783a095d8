"""A person's own rows of a house, and how they are learned with drawn ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .by_own import wishes_of
from .entities import Home
from .rows import Row
from .sentences import Sentence, read_sentences

OWN = "own"  # the kind of such rows
TIMES = 4  # that each is learned, where a drawn one is learned once


def read_own(path: str | Path, home: Home) -> list[Row]:
    """The rows of a file. Raises the errors of read_wishes."""
    return rows_of(read_sentences(path), home)


def rows_of(sentences: Iterable[Sentence], home: Home) -> list[Row]:
    """The rows of sentences with their calls. Raises the errors of wishes_of."""
    return [Row(sentence, wishes, OWN) for sentence, wishes in wishes_of(sentences, home)]


def with_own(drawn: Sequence[Row], own: Sequence[Row]) -> list[Row]:
    """Drawn rows, without those whose sentences a person has too, and then each of the person's several times. They
    stand at the end, so that none is held out.
    """
    said = {row.sentence.lower() for row in own}
    return [row for row in drawn if row.sentence.lower() not in said] + [*own] * TIMES
