"""Uploaded files: rows, and documents. Each file of rows is read once while it arrives, and kept only if every line of
it can be trained on. Results of jobs, a table of steps each, are kept as long as the job.

A client's name for a file is shown and never opened: on disk the file has another.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, cast

from ... import disk
from ...data import prompts
from ...data import rows as supervised_rows
from ...data.files import read_rows
from ...data.formats import recognised
from ...data.question import not_json
from ...data.rows import Row, RowParser, json_type
from ...errors import DataError, NotFoundError, TooLargeError, TooMuchError, UsageError
from ...formats.bundle import sha256
from ...manifest import manifests
from ...objectives.base import objectives
from ...persisted import from_json
from ..options import DaemonConfig
from .database import Store, now
from .shelf import Shelf
from .uploads import BOM, LINES, MIB, check_length, form_of, spooled

FOLDER = "files"
NAMES = r"file-[0-9a-z]+\.(jsonl|csv|document)"
PURPOSE = "fine-tune"
RESULTS = "fine-tune-results"
RESULT_NAME = "step_metrics.csv"
NAME_LENGTH = 255  # characters of a client's name for it; the rest is cut
KIB = 2**10


@dataclass(frozen=True)
class File:
    """A file that was accepted. sha256 is of its bytes, created_at in seconds since 1970."""

    id: str
    name: str
    purpose: str
    bytes: int
    rows: int
    sha256: str
    created_at: int


class Files:
    """The files below `folder`, for any number of threads."""

    def __init__(self, store: Store, folder: Path, config: DaemonConfig) -> None:
        self.store = store
        self.config = config
        self._shelf = Shelf(folder, FOLDER, NAMES)
        self.folder = self._shelf.folder
        self.on_deleted: list[Callable[[str], object]] = []  # called with the id of a file after its deletion
        self._shelf.tidy({_name(row["id"], row["purpose"]) for row in store.read("SELECT id, purpose FROM files")})

    def add(self, name: str, purpose: str, chunks: Iterable[bytes]) -> File:
        """Stores a file of JSON Lines while it arrives, a table or an array of JSON as JSON Lines. After an error
        nothing of it remains.

        Raises DataError for a line that is not a row, with its number; TooLargeError for more bytes or rows than
        options allow, or a longer line; UsageError for another purpose; DiskError.
        """
        check_purpose(purpose)
        file_id = f"file-{secrets.token_hex(12)}"
        if check_name := purposes()[purpose]:
            check_name(printable(name))
            return self._add_as_it_is(file_id, printable(name), purpose, chunks)
        stored = _name(file_id, purpose)
        check = _Check(self.config)
        with self._shelf.filling(stored) as path:
            with path.open("xb") as out:
                out.writelines(check.accepted(name, chunks))
            disk.sync(path)
            file = File(file_id, printable(name), purpose, check.bytes, check.rows, check.sha256.hexdigest(), now())
            self._insert(file)
        self._shelf.settle(stored)
        return file

    def _add_as_it_is(self, file_id: str, name: str, purpose: str, chunks: Iterable[bytes]) -> File:
        """Stores a file that is not read here. Raises TooLargeError, DiskError."""
        stored = _name(file_id, purpose)
        with self._shelf.filling(stored) as path:
            size = 0
            with path.open("xb") as out:
                for chunk in chunks:
                    size += len(chunk)
                    check_size(size, self.config.max_upload)
                    out.write(chunk)
            disk.sync(path)
            file = File(file_id, name, purpose, size, 0, sha256(path), now())
            self._insert(file)
        self._shelf.settle(stored)
        return file

    def add_result(self, job: str, write: Callable[[Path], int]) -> None:
        """Keeps the results of a job, once. write: returns the number of rows written. Raises DiskError."""
        file_id = _result_of(job)
        if self.results(job):
            return
        stored = _name(file_id, RESULTS)
        with self._shelf.filling(stored) as path:
            rows = write(path)
            disk.sync(path)
            self._insert(File(file_id, RESULT_NAME, RESULTS, path.stat().st_size, rows, sha256(path), now()))
        self._shelf.settle(stored)

    def _insert(self, file: File) -> None:
        with self.store.write() as db:
            db.execute("INSERT INTO files (id, name, purpose, bytes, rows, sha256, created_at) "
                       "VALUES (:id, :name, :purpose, :bytes, :rows, :sha256, :created_at)", vars(file))

    def results(self, job: str) -> Sequence[str]:
        """Returns the ids of a job's results: one, or none where they were deleted or nothing was trained."""
        return [row["id"] for row in self.store.read("SELECT id FROM files WHERE id = ?", _result_of(job))]

    def remove_results_of_no_job(self) -> None:
        """Removes the results of jobs that no longer exist."""
        for row in self.store.read("SELECT id FROM files WHERE purpose = ? AND 'ftjob-' || substr(id, 6) NOT IN "
                                   "(SELECT id FROM jobs)", RESULTS):
            self.delete(row["id"])

    def get(self, id: str) -> File:
        """Returns a file. Raises NotFoundError."""
        return self.store.one("files", self.store.read("SELECT * FROM files WHERE id = ?", id), _file, _unknown(id))

    def has(self, id: str) -> bool:
        """Returns whether a file is there, also one whose row is damaged."""
        return bool(self.store.read("SELECT 1 FROM files WHERE id = ?", id))

    def list(self, after: str | None = None, limit: int = 100, purpose: str | None = None) -> Sequence[File]:
        """Returns files, the newest first, at most `limit` of them, those older than the file `after`."""
        return self.store.newest("files", _file, self.store.before("files", after), limit, "? IN (purpose, '')",
                                 purpose or "")

    def delete(self, id: str) -> None:
        """Deletes a file. Jobs have copies of their rows, so those that use it continue; feedback jobs that begin later
        do without them. Raises NotFoundError.
        """
        def delete_row() -> None:
            with self.store.write() as db:
                db.execute("DELETE FROM files WHERE id = ?", (id,))

        if not (rows := self.store.read("SELECT purpose FROM files WHERE id = ?", id)):
            raise _unknown(id)
        self._shelf.remove(_name(id, rows[0]["purpose"]), delete_row)
        self.store.forget("files", id)
        self.store.wipe()  # its name
        for forget in self.on_deleted:
            forget(id)

    def content(self, id: str) -> Path:
        """Returns the path of a file's bytes. Raises NotFoundError, also where they were removed or changed."""
        file = self.get(id)
        path = self._shelf.path(_name(id, file.purpose))
        if path.is_symlink() or not path.is_file():
            raise NotFoundError(f"the bytes of the file {id} are gone from {self.folder}",
                                "delete it and upload it again")
        if sha256(path) != file.sha256:
            raise NotFoundError(f"the bytes of the file {id} in {self.folder} are not those that were uploaded",
                                "delete it and upload it again")
        return path

    def rows(self, id: str, asking: bool = False) -> Rows:
        """Returns the rows of an uploaded file; asking: as in Rows. Raises NotFoundError; UsageError for another file.
        """
        if (purpose := self.get(id).purpose) != PURPOSE:
            what = "the results of a job" if purpose == RESULTS else "a document"
            raise UsageError(f"the file {id} holds {what}, no rows", f"name one that was uploaded with {PURPOSE!r}")
        return Rows(self.content(id), asking)


def _name(id: str, purpose: str) -> str:
    return id + {RESULTS: ".csv", PURPOSE: ".jsonl"}.get(purpose, ".document")


@cache
def purposes() -> dict[str, Callable[[str], object] | None]:
    """Returns the purposes that an upload may have; of one whose files are kept as they are, what checks a name."""
    return {PURPOSE: None, **{purpose: manifest.load(check) for manifest in manifests()
                              for purpose, check in manifest.purposes.items()}}


def check_purpose(purpose: str) -> None:
    """Raises UsageError for a purpose that no upload has."""
    if purpose not in purposes():
        raise UsageError(f"purpose is {purpose!r:.40}", f"use {' or '.join(map(repr, purposes()))}, all that files are "
                         "for here")


def check_size(size: int, max_upload: int) -> None:
    """Raises TooLargeError for more bytes than an upload may have. max_upload: MiB."""
    if size > max_upload * MIB:
        raise TooLargeError(f"the file has more than {max_upload} MiB",
                            "divide it, or start the daemon with a larger --max-upload")


def _result_of(job: str) -> str:
    """Returns the id of a job's results: written twice after a kill, they are one file."""
    return f"file-{job.removeprefix('ftjob-')}"


def _file(columns: dict[str, Any]) -> File:
    return from_json(File, columns, "the row")


def _unknown(id: str) -> NotFoundError:
    return NotFoundError(f"there is no file {id!r:.80}", "list the files to see those that exist")


class _Check:
    """Reads a file by pieces, counts, and refuses the first line that no method can learn with the others."""

    def __init__(self, config: DaemonConfig) -> None:
        self.config = config
        self.sha256 = hashlib.sha256()
        self.bytes = 0
        self.rows = 0
        self.lines = 0
        self._shapes: dict[RowParser, str] = dict.fromkeys(_parsers(), "")  # of parsers that can read all rows so far
        self._rest = bytearray()  # the line that has not ended

    def accepted(self, name: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yields the bytes to store: as they came, or those of JSON Lines where the file `name` has another form."""
        pieces = iter(chunks)
        first = next(pieces, b"")
        whole = chain([first], pieces)
        form = form_of(name, first)
        if form == LINES:
            for chunk in whole:
                self.take(chunk)
                yield chunk
        else:
            with spooled(whole, form, self.config.max_upload) as path:
                for number, row in read_rows(path):
                    yield self.converted(number, row)
        self.end()

    def converted(self, number: int, row: Row) -> bytes:
        """Returns the line of JSON of a row from line `number` of another form."""
        line = json.dumps(row).encode() + b"\n"
        check_length(number, len(line), self.config.max_body)
        self._row(number, row)
        self.bytes += len(line)
        self.sha256.update(line)
        return line

    def take(self, chunk: bytes) -> None:
        self.bytes += len(chunk)
        check_size(self.bytes, self.config.max_upload)
        self.sha256.update(chunk)
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            self._line(bytes(self._rest + part))
            self._rest.clear()
        self._rest += rest
        if len(self._rest) > self.config.max_body * KIB:
            self._line(bytes(self._rest))

    def end(self) -> None:
        self._line(bytes(self._rest))
        if not self.rows:
            raise DataError("the file holds no rows", "write one JSON object a line")

    def _line(self, line: bytes) -> None:
        self.lines += 1
        check_length(self.lines, len(line), self.config.max_body)
        if self.lines == 1:
            line = line.removeprefix(BOM)
        if line.strip():
            self._row(self.lines, line)

    def _row(self, number: int, row: Row | bytes) -> None:
        """Checks and counts a row, or the line that holds it."""
        try:
            self._check_row(recognised(parse(row) if isinstance(row, bytes) else row, list(self._shapes)))
        except DataError as error:
            raise DataError(f"line {number}: {error.what}", error.hint) from None
        self.rows += 1
        if self.rows > self.config.max_rows:
            raise TooLargeError(f"the file has more than {self.config.max_rows} rows",
                               "divide it, or start the daemon with a larger --max-rows")

    def _check_row(self, row: Row) -> None:
        """Checks a row. An upload names no method, so any one must suit all rows. Raises DataError."""
        refusals: list[DataError] = []
        shapes = {}
        for parser, before in self._shapes.items():
            try:
                if parser is prompts and "completion" in row:  # a wrong answer does not make it a question
                    supervised_rows.check_learnable(row)
                shape = parser.check_learnable(row)
                if shape != "text" and before not in ("", "text", shape):  # as in training: text goes with any
                    raise DataError(f"a row of {shape} among rows of {before}", "keep one shape in a file")
            except DataError as error:
                refusals.append(error)
            else:
                shapes[parser] = shape if before in ("", "text") else before
        was_more = any(shape and parser is not prompts for parser, shape in self._shapes.items())
        if not shapes or (was_more and set(shapes) <= {prompts}):  # rows of many shapes are prompts with more keys
            raise refusals[0]
        self._shapes = shapes


def _parsers() -> list[RowParser]:
    """Returns the parsers of all objectives. That of supervised rows is first: its error is reported where none can
    read a row. That of prompts is last, since rows of many shapes have a prompt.
    """
    rows = {objective.rows.shape_of: objective.rows for objective in objectives().values()}  # a reader of each shape
    apart = (supervised_rows.shape_of, prompts.shape_of)
    others = [parser for shape_of, parser in rows.items() if shape_of not in apart]
    return [supervised_rows, *others, prompts]


def parse(line: bytes) -> dict[str, Any]:
    """Parses a line as a row. Raises DataError."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"
        raise DataError(f"it is {what} ({line[:40]!r})", "write one JSON object a line") from None
    if not isinstance(row, dict):
        raise DataError(f"it is a JSON {json_type(row)}, not an object", "write one JSON object a line")
    return row


class Rows:
    """The rows of an accepted file, converted from other formats, to iterate over as often as needed.

    asking: rows may have a prompt alone, as for rewards. Keys but completion are then values for a grader.
    """

    def __init__(self, path: Path, asking: bool = True) -> None:
        self.path = path
        self._parsers = [parser for parser in _parsers() if asking or parser is not prompts]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for _, row in self.placed())

    def placed(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields each row after its place, where `at` finds it again."""
        place = 0
        with self.path.open("rb") as file:
            for line in file:
                if (text := line if place else line.removeprefix(BOM)).strip():
                    yield place, self._row(text)
                place += len(line)

    def at(self, place: int) -> dict[str, Any]:
        """Returns the row at a place. Raises TooMuchError where the file was deleted meanwhile."""
        try:
            with self.path.open("rb") as file:
                file.seek(place)
                line = file.readline()
        except FileNotFoundError:
            raise TooMuchError(f"the file {self.path.stem} was deleted while a job began", "ask again") from None
        return self._row(line if place else line.removeprefix(BOM))

    def _row(self, line: bytes) -> dict[str, Any]:
        return cast(dict[str, Any], recognised(parse(line), self._parsers))


def lines_of(rows: Iterable[Row]) -> Iterator[bytes]:
    """Yields rows as JSON Lines. Raises DataError for what JSON cannot hold."""
    for row in rows:
        try:
            yield json.dumps(row).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise not_json(error) from None


def printable(name: str) -> str:
    """Returns a name from a client, safe to show."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:NAME_LENGTH])
