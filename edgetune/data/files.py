"""Rows of files, read one at a time: JSON Lines, an array of JSON, CSV, TSV, Parquet or plain text, by their names.

What a file may hold is bounded, so that no file takes memory without limit before it is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from ..disk import PIECE, open_regular
from ..errors import DataError, install_hint, lacking, size_text
from .decisions import only_asks, with_shared
from .parts import STDIN, SUFFIXES, parts_of
from .rows import Row, json_type

LINE_LIMIT = 1 << 20  # bytes of a row's line: more than any context holds, and a row takes 160 times its bytes
TEXT_LIMIT = 256 << 20  # bytes of a file of plain text, which is tokenized as a whole
ARRAY_LIMIT = 64 << 20  # bytes of a file that is one array of JSON
PARQUET_ROWS = 256  # read at once
NESTED = 100  # levels of a row: whatever writes or reads it again needs some of Python's stack for each
KINDS = f"name a file ({', '.join(SUFFIXES)}), or {STDIN} to read rows from standard input"
LINES = "write one JSON object a line; a file of plain text must be named .txt"
_SPACE = re.compile(r"[ \t\r\n]*")  # between values of JSON
_START = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\[")  # of an array


class Digest:
    """The sha256 and the number of the bytes that were read."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.count = 0

    def update(self, content: bytes) -> None:
        self.sha256.update(content)
        self.count += len(content)

    def update_from(self, file: BinaryIO) -> None:
        """Reads a file to its end."""
        while block := file.read(PIECE):
            self.update(block)

    def share_of(self, path: Path) -> float:
        """The share of the bytes that were read, 1 where their number is not known."""
        size = sum(part.stat().st_size for part in parts_of(path) if part.is_file())
        return self.count / size if size else 1.0


class Line(int):
    """A line's number in a file of this name, one of several."""

    name: str

    def __new__(cls, number: int, name: str = "") -> Line:
        line = super().__new__(cls, number)
        line.name = name
        return line


def read_rows(path: Path, digest: Digest | None = None) -> Iterator[tuple[int, Row]]:
    """(line, row) of each row that `path` names, as `parts_of` reads it: of several files, the line is a Line.

    NAME.txt is one row of plain text, of line 0; NAME.csv and NAME.tsv have a header; NAME.json is an array or JSON
    Lines; NAME.parquet has a table; all else is JSON Lines. "-" is JSON Lines from standard input; other than that,
    only regular files are read. `digest` sees all bytes. Raises DataError, which names the line, for what cannot be
    read.
    """
    digest = digest or Digest()
    parts = parts_of(path)
    yield from with_shared(_read_files(parts, digest))


def _read_files(parts: Sequence[Path], digest: Digest) -> Iterator[tuple[int, Row]]:
    for part in parts:
        name = str(part) if len(parts) > 1 else part.name
        for line, row in _read_file(part, name, digest):
            yield (Line(line, name) if len(parts) > 1 else line), row


def begins_with_questions(path: Path) -> bool:
    """Whether the first line of a file has questions for the rows after it, which only `read_rows` gives to these."""
    try:
        with path.open("rb") as file:
            return only_asks(json.loads(file.readline(LINE_LIMIT)))
    except (OSError, ValueError, RecursionError):
        return False


def digest_of_files(path: Path) -> str:
    """The sha256 of all bytes that `read_rows` reads. Raises OSError."""
    digest = Digest()
    for part in parts_of(path):
        with open_regular(part) as file:
            digest.update_from(file)
    return digest.sha256.hexdigest()


def _read_file(path: Path, name: str, digest: Digest) -> Iterator[tuple[int, Row]]:
    kind = path.suffix.lower()
    try:
        with os.fdopen(0, "rb", closefd=False) if str(path) == STDIN else open_regular(path) as file:
            if kind == ".txt":
                hint = "train on parts of it, or write it as rows of text"
                yield 0, _whole(file, name, digest, TEXT_LIMIT, hint)
            elif kind in (".csv", ".tsv"):
                yield from _table(_lines(file, name, digest), name, "\t" if kind == ".tsv" else ",")
            elif kind == ".parquet":
                digest.update_from(file)
                file.seek(0)
                for line, row in _parquet(file, name):
                    _check_size(len(json.dumps(row)), line, name)
                    yield line, row
            elif kind == ".json" and _START.match(file.peek(512)):  # type: ignore[attr-defined]
                text = _whole(file, name, digest, ARRAY_LIMIT, "write it as JSON Lines, one object a line")
                yield from _array(text, name)
            else:
                yield from _objects(_lines(file, name, digest), name)
    except FileNotFoundError:
        raise DataError(f"there is no file {path}", "check the path") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})", KINDS) from None


def place(line: int, name: str) -> str:
    """The place of a row of `read_rows`, for a sentence. name: that of the file, unless the line has one."""
    name = getattr(line, "name", name)
    return f"line {line} of {name}" if line else name


def _lines(file: BinaryIO, name: str, digest: Digest) -> Iterator[str]:
    """The lines of a file, read one at a time; `digest` sees all bytes. Raises DataError for one that is no UTF-8 or
    longer than LINE_LIMIT."""
    number = 0
    while line := file.readline(LINE_LIMIT + 1):
        number += 1
        size = len(line)
        while size > LINE_LIMIT and size < ARRAY_LIMIT and (rest := file.readline(PIECE)):
            size += len(rest)
            if rest.endswith(b"\n"):
                break
        _check_size(size, number, name)
        digest.update(line)
        yield _decoded(line, number, name)


def _check_size(size: int, line: int, name: str) -> None:
    """Raises DataError for a row of more than LINE_LIMIT bytes. line: where it is."""
    if size > LINE_LIMIT:
        found = size_text(size) if size < ARRAY_LIMIT else f"more than {size_text(ARRAY_LIMIT)}"
        raise DataError(f"{place(line, name)} has {found}, the limit is {size_text(LINE_LIMIT)}",
                        "divide it into several rows, one a line")


def _whole(file: BinaryIO, name: str, digest: Digest, limit: int, hint: str) -> str:
    """All of a file that has at most `limit` bytes."""
    size = os.fstat(file.fileno()).st_size
    if size > limit:
        raise DataError(f"{name} has {size_text(size)}, the limit is {size_text(limit)}", hint)
    content = file.read(limit)
    digest.update(content)
    return _decoded(content, 1, name)


def _decoded(content: bytes, number: int, name: str) -> str:
    """UTF-8 that begins in line `number` of a file, as text, without the byte order mark that some editors write."""
    try:
        return content.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = number + content.count(b"\n", 0, error.start)
        raise DataError(f"line {line} of {name} is not UTF-8", "save the file as UTF-8") from None


# ---- JSON ------------------------------------------------------------------------------------------------------------


def _objects(lines: Iterable[str], name: str) -> Iterator[tuple[int, Row]]:
    """The object of each line that is not blank."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise _not_json(number, name, line, LINES) from None
        brackets = line.count("[") + line.count("{")
        yield number, _object(row, number, name, "write one JSON object a line", brackets)


def _array(text: str, name: str) -> Iterator[tuple[int, Row]]:
    """The objects of an array, decoded one at a time, with the line in which each begins."""
    hint = "write an array of objects, [{...}, {...}], or one object a line"
    decode = json.JSONDecoder().raw_decode
    line = 1
    counted = 0  # where in the text that line is
    at = _after_space(text, text.index("[") + 1)
    more = not text.startswith("]", at)
    while more:
        line += text.count("\n", counted, at)
        counted = at
        try:
            row, end = decode(text, at)
        except (ValueError, RecursionError):
            raise _not_json(line, name, text[at : at + 80], hint) from None
        _check_size(end - at, line, name)
        yield line, _object(row, line, name, hint, text.count("[", at, end) + text.count("{", at, end))
        at = _after_space(text, end)
        more = text.startswith(",", at)
        if more:
            at = _after_space(text, at + 1)
    if text[at:].strip() != "]":
        raise _not_json(line + text.count("\n", counted, at), name, text[at : at + 80], hint)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _object(row: Any, line: int, name: str, hint: str, brackets: int) -> Row:
    """brackets: how many there are in its text, as many levels as it could have."""
    if not isinstance(row, dict):
        raise DataError(f"{place(line, name)} is a JSON {json_type(row)}, not an object", hint)
    if brackets > NESTED and _levels_exceed(row, NESTED):
        what = f"{place(line, name)} is nested more than {NESTED} levels deep"
        raise DataError(what, "leave out what is not learned")
    return row


def _levels_exceed(value: Any, limit: int) -> bool:
    """Whether lists and objects are within one another more than `limit` times."""
    level = [value]
    for _ in range(limit):
        level = [inner for outer in level if isinstance(outer, dict | list)
                 for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return any(isinstance(inner, dict | list) for inner in level)


def _not_json(line: int, name: str, text: str, hint: str) -> DataError:
    start = text.strip()[:40]
    return DataError(f"{place(line, name)} is not JSON ({start!r})", hint)


# ---- CSV -------------------------------------------------------------------------------------------------------------


def _table(lines: Iterator[str], name: str, delimiter: str) -> Iterator[tuple[int, Row]]:
    """The rows below a header, whose cells are texts; of a .csv file without commas, semicolons divide the cells."""
    import csv  # here: most files are of another form
    first = next(lines, "")
    if delimiter == "," and "," not in first and ";" in first:
        delimiter = ";"
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not header:
                header = _header(cells, name)
            elif any(cells) and len(cells) != len(header):
                what = f"{place(line, name)} has {len(cells)} cells, the header has {len(header)}"
                raise DataError(what, "put cells that hold separators or line ends between quotes")
            elif any(cells):
                yield line, dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        hint = f"put cells that hold {delimiter!r}, quotes or line ends between quotes, and keep a cell under 128 KiB"
        raise DataError(f"{place(line, name)} is not CSV ({error})", hint) from None


def _header(cells: list[str], name: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = next((column for column, times in Counter(header).most_common(1) if times > 1), None)
    if twice is not None:
        raise DataError(f"the header of {name} names {twice!r:.80} twice", "give each column another name")
    return header


def _parquet(file: BinaryIO, name: str) -> Iterator[tuple[int, Row]]:
    """(number, row) of each row of a Parquet file, by pyarrow. Values that JSON does not have, such as images, and null
    are left out. Raises DataError.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise lacking(error) or DataError(f"{name} is Parquet, and pyarrow, which reads it, is not installed",
                        install_hint("rows")) from None
    number = 0
    try:
        with ParquetFile(file) as table:
            for batch in table.iter_batches(PARQUET_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, _json(row)
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name} cannot be read as Parquet ({reason:.200})", "write it again, or as lines of JSON") \
            from None


def _json(value: Any) -> Any:
    """The parts of a value that JSON has."""
    if isinstance(value, dict):
        parts = {key: _json(part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part is not None}
    if isinstance(value, list):
        return [_json(part) for part in value]
    return value if isinstance(value, str | int | float | bool) else None
