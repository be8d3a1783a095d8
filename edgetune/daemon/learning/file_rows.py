"""Rows of a file that the active adapter has learned, for feedback jobs, which begin from the base and would forget it.

The job that made the active adapter names the file: it learned the file, or feedback with rows of the file. So the
active adapter decides, also after a rollback. The rows are read from the upload. Once a person has deleted that, no
later job learns them. They are divided as for the file's job. At most MOST_LEARNED are learned, a random choice by the
seed, and MOST_HELD of the held-out ones are earlier questions of the gate. A person's feedback counts more than a file:
a row is left out where there is feedback on its question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from ...data import prompts
from ...data import rows as supervised_rows
from ...data.around import instructed, unlearned
from ...data.formats import read_as
from ...data.question import digest, question_of
from ...data.rows import Row, RowParser
from ...errors import NotFoundError
from ..jobs.jobs import FileIds, Jobs
from ..jobs.recipe import objective_of
from ..state.files import Files, Rows
from ..state.holdout import MOST

MOST_LEARNED = 2000  # rows of a file that a feedback job learns
MOST_HELD = MOST // 4  # held-out rows of a file among the gate's earlier questions


@dataclass(frozen=True, slots=True)
class FileRow:
    """A row of an upload without its content, since all rows of a job together may not fit in memory. place: in the
    file; number: of the rows that are read in its place. name: its digest. is_chat: whether it is a row of messages.
    """

    rows: Rows
    parser: RowParser
    place: int
    number: int
    name: str
    is_chat: bool

    def read(self) -> dict[str, Any]:
        row = read_as(self.rows.at(self.place), self.parser)[self.number]
        assert isinstance(row, dict)
        return row


@dataclass(frozen=True)
class FileRows:
    """The rows of a file for a job. learned: to learn. held: earlier questions of the gate. ids: of the files that the
    job names, where it learns some of them. name: of the file. note: a sentence for the job's history, or "".
    """

    learned: Sequence[FileRow] = ()
    held: Sequence[FileRow] = ()
    ids: FileIds = (None, None)
    name: str = ""
    note: str = ""


def files_of_active(jobs: Jobs) -> FileIds:
    """Returns the files whose rows the active adapter has learned as right answers, for a job that begins from it."""
    made_by = jobs.of_active()
    if made_by is None or objective_of(made_by.method)[0].rows is not supervised_rows:
        return None, None
    return made_by.training_file, made_by.validation_file


def rows_of_active(jobs: Jobs, parser: RowParser, answered: Set[str], system: str) -> FileRows:
    """Returns the rows for a feedback job that begins now. parser: of the rows that it learns; rows that others read
    are held out, but not learned. answered: digests of the questions with feedback. system: of rows without a system
    message.
    """
    made_by = jobs.of_active()
    if made_by is None or made_by.training_file is None:
        return FileRows()
    file = made_by.training_file
    method = objective_of(made_by.method)[0]
    forgets = f"does not learn {file} again, which the active adapter learned:"
    if method.rows.shape_of is prompts.shape_of:
        return FileRows(note=f"{forgets} {method.name} learned it from rewards")
    try:
        rows = list(_rows(jobs.files, file, method.rows))
    except NotFoundError as error:
        return FileRows(note=f"{forgets} {error.what}")
    held = _held_out(jobs, rows, made_by.validation_file, method.rows)
    names = {row.name for row in held}
    candidates = [row for row in rows if row.name not in names] if method.rows is parser else []
    shuffled = Random(jobs.train.seed).sample(candidates, len(candidates))
    chosen = islice(_unanswered(shuffled, answered, system), MOST_LEARNED)
    learned = sorted(chosen, key=lambda row: (row.place, row.number))
    by_rank = sorted({row.name: row for row in held}.values(), key=lambda row: jobs.holdout.rank(row.name))
    asked = list(islice(_unanswered(by_rank, answered, system), MOST_HELD))
    what = f"learns {len(learned)} of {len(rows)} rows of {file} again"
    if method.rows is not parser:
        what = f"{forgets} {method.name} learned other rows than this daemon does"
    note = f"{what}; {len(asked)} of its held-out rows are earlier questions of the test"
    return FileRows(learned, asked, (file, made_by.validation_file) if learned else (None, None), file, note)


def _held_out(jobs: Jobs, rows: Sequence[FileRow], validation_file: str | None, parser: RowParser) -> list[FileRow]:
    """Returns the rows that the file's job held out; none where they were in a file that was deleted."""
    if validation_file is None:
        apart = jobs.holdout.divide(row.name for row in rows)
        return [row for row in rows if row.name in apart]
    try:
        return list(_rows(jobs.files, validation_file, parser))
    except NotFoundError:
        return []


def _rows(files: Files, id: str, parser: RowParser) -> Iterator[FileRow]:
    """Yields all rows as a parser reads them. Raises NotFoundError where the file was deleted, or changed."""
    rows = files.rows(id)
    for place, given in rows.placed():
        for number, row in enumerate(read_as(given, parser)):
            yield FileRow(rows, parser, place, number, digest(row), "messages" in row)


def _unanswered(rows: Iterable[FileRow], answered: Set[str], system: str) -> Iterator[FileRow]:
    return (row for row in rows if answered.isdisjoint(_questions(row.read(), system)))


def _questions(row: Row, system: str) -> set[str]:
    """Returns the digests under which feedback on the question of a row may be stored: as a prompt or as messages, with
    the system message or without. None for plain text, which asks nothing.
    """
    asked = question_of(row)
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    if not isinstance(asked, list):
        return set()
    asked = unlearned(asked)
    bare = asked[1:] if asked[:1] == [{"role": "system", "content": system}] else asked
    forms: list[Any] = [{"messages": messages} for messages in (bare, instructed(bare, system))]
    if len(bare) == 1:
        forms.append({"prompt": bare[0]["content"]})
    return set(map(digest, forms))
