"""Data files to token ids and token weights: JSON Lines or plain text -> Dataset.

The shapes of rows, and which of their tokens are supervised: `rows`. Batches of examples: `packing`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError, UsageError
from ..llamacpp.tokenizer import Tokenizer
from . import rows as supervised_rows
from .holdout import digest_of, held_out_indices
from .packing import Example, is_supervised
from .rows import Row, RowParser, example, json_type, shape_of

STDIN = "-"  # the name by which rows are read from standard input
LINE_LIMIT = 16 << 20  # bytes of a row
TEXT_LIMIT = 256 << 20  # bytes of a file of plain text, which is tokenized as a whole


@dataclass(frozen=True)
class Dataset:
    """Tokenized rows. `rows` are those that `examples` came from; a row can give several examples (see `rows`).

    `truncated` counts examples that were cut to max_length; `skipped` those left out: too long and the option says so,
    or nothing to learn in what the cut left. `digest` is the sha256 of the file's bytes, or of the rows.
    """

    examples: list[Example]
    rows: list[Row]
    kind: str  # a key of SHAPES; text where all of them are
    truncated: int
    skipped: int
    digest: str

    @property
    def asking(self) -> list[Row]:
        """The rows that have a question and an answer."""
        return [row for row in self.rows if shape_of(row) != "text"]

    @property
    def tokens(self) -> int:
        return sum(example.tokens.size for example in self.examples)

    @property
    def supervised(self) -> int:
        """The number of supervised tokens."""
        return sum(example.supervised for example in self.examples)


def load(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    system: str | None = None,
    overflow: str = "truncate",
    parser: RowParser = supervised_rows,
) -> Dataset:
    """A data file, tokenized: NAME.txt is plain text, cut into documents of max_length tokens; all else is JSON Lines.
    "-" is JSON Lines from standard input; other than that, only regular files are read.

    `system` is the system message of rows that have none. `overflow` says what happens to a longer row: "truncate"
    keeps its start, "skip" leaves it out. `parser` reads the rows, an objective's `rows`. Raises DataError, which names
    the line, for what cannot be used.
    """
    return _read(Path(path), tokenizer, max_length, system, overflow, parser).dataset()


def load_divided(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    system: str | None = None,
    overflow: str = "truncate",
    parser: RowParser = supervised_rows,
) -> tuple[Dataset, Dataset | None]:
    """(rows to learn, rows held out): the file as `load` reads it, divided as `holdout` says, among the rows of which
    something can be learned. Either side's digest is of its rows. (All of the file, None) where none can be held out.
    """
    return _read(Path(path), tokenizer, max_length, system, overflow, parser).divided()


def _read(path: Path, *options: Any) -> _Tokenized:
    """The file, with the digest of its bytes. options: those of _tokenized."""
    digest = hashlib.sha256()
    try:
        with _opened(path) as file:
            rows: Iterable[tuple[str, Row]]
            if path.suffix.lower() == ".txt":
                rows = [(path.name, _text(file, path.name, digest))]
            else:
                rows = _parse(_lines(file, path.name, digest), path.name)
            made = _tokenized(rows, path.name, *options)
    except FileNotFoundError:
        raise DataError(f"there is no file {path}", "check the path") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})", "name a .jsonl or .txt file") from None
    return replace(made, digest=f"sha256:{digest.hexdigest()}")


def load_rows(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    system: str | None = None,
    overflow: str = "truncate",
    parser: RowParser = supervised_rows,
) -> Dataset:
    """Rows of one shape, and text, tokenized as `load` does; a row that is a str is plain text, as in a .txt file."""
    digest = digest_of(rows)
    named = ((f"row {i}", row) for i, row in enumerate(rows, start=1))
    return replace(_tokenized(named, "the data", tokenizer, max_length, system, overflow, parser),
                   digest=digest).dataset()


def _opened(path: Path) -> BinaryIO:
    """A regular file, or standard input where its name is given; reading anything else could block, or never end."""
    if str(path) == STDIN:
        return os.fdopen(0, "rb", closefd=False)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer does not block
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind == stat.S_IFREG:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    names = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    what = f"{path} is a {names.get(kind, 'special file')}, not a regular file"
    raise DataError(what, f"name a .jsonl or .txt file, or {STDIN} to read rows from standard input")


def _lines(file: BinaryIO, name: str, digest: hashlib._Hash) -> Iterator[str]:
    """The lines of a file, read one at a time; `digest` sees all bytes. Raises DataError for one that is no UTF-8 or
    longer than LINE_LIMIT."""
    number = 0
    while line := file.readline(LINE_LIMIT + 1):
        number += 1
        if len(line) > LINE_LIMIT:
            what = f"line {number} of {name} is longer than {LINE_LIMIT >> 20} MiB"
            raise DataError(what, "write one JSON object a line, and cut what is longer")
        digest.update(line)
        yield _decoded(line, number, name)


def _text(file: BinaryIO, name: str, digest: hashlib._Hash) -> str:
    """All of a file of plain text."""
    size = os.fstat(file.fileno()).st_size
    if size > TEXT_LIMIT:
        what = f"{name} has {size >> 20} MiB of text, the limit is {TEXT_LIMIT >> 20}"
        raise DataError(what, "train on parts of it, or write it as rows of text")
    content = file.read(TEXT_LIMIT)
    digest.update(content)
    return _decoded(content, 1, name)


def _decoded(content: bytes, number: int, name: str) -> str:
    """UTF-8 that begins in line `number` of a file, as text, without the byte order mark that some editors write."""
    try:
        return content.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = number + content.count(b"\n", 0, error.start)
        raise DataError(f"line {line} of {name} is not UTF-8", "save the file as UTF-8") from None


def _parse(lines: Iterable[str], name: str) -> Iterator[tuple[str, Row]]:
    """(where, row) of each line that is not blank."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"line {number} of {name}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            start = line.strip()[:40]
            hint = "write one JSON object a line; a file of plain text must be named .txt"
            raise DataError(f"{where} is not JSON ({start!r})", hint) from None
        if not isinstance(row, dict):
            raise DataError(f"{where} is a JSON {json_type(row)}, not an object", "write one JSON object a line")
        yield where, row


@dataclass(frozen=True)
class _TokenizedRow:
    """A row with the examples that can be learned of it, whose groups are 1, 2, ... up to `groups`."""

    row: Row
    examples: list[Example]
    groups: int
    truncated: int
    skipped: int


@dataclass(frozen=True)
class _Tokenized:
    """All rows of a data set, in their order; the other fields are a Dataset's."""

    rows: list[_TokenizedRow]
    kind: str
    digest: str = ""

    def dataset(self) -> Dataset:
        examples: list[Example] = []
        groups = 0
        for made in self.rows:
            examples += [replace(one, group=groups + one.group) if one.group else one for one in made.examples]
            groups += made.groups
        return Dataset(examples, [made.row for made in self.rows if made.examples], self.kind,
                       sum(made.truncated for made in self.rows), sum(made.skipped for made in self.rows), self.digest)

    def divided(self) -> tuple[Dataset, Dataset | None]:
        learnable = [i for i, made in enumerate(self.rows) if made.examples]
        chosen = {learnable[i] for i in held_out_indices([self.rows[i].row for i in learnable])}
        if not chosen:
            return self.dataset(), None
        learned, held = (_Tokenized([made for i, made in enumerate(self.rows) if (i in chosen) == side], self.kind)
                         .dataset() for side in (False, True))
        return replace(learned, digest=digest_of(learned.rows)), replace(held, digest=digest_of(held.rows))


def _tokenized(
    rows: Iterable[tuple[str, Row]],
    name: str,
    tokenizer: Tokenizer,
    max_length: int,
    system: str | None,
    overflow: str,
    parser: RowParser,
) -> _Tokenized:
    """rows: (where, row), where a row's errors are said to be; name: of all rows together. The digest stays empty."""
    if max_length < 2:
        raise UsageError(f"max-length is {max_length}", "choose 2 tokens or more")
    if overflow not in ("truncate", "skip"):
        raise UsageError(f"overflow is {overflow!r}", "choose truncate or skip")
    reader = _RowReader(tokenizer, max_length, system, overflow, parser)
    made = []
    for where, row in rows:
        try:
            made.append(reader.read(where, row))
        except DataError as error:
            raise DataError(f"{where}: {error.what}", error.hint) from None
    if not made:
        raise DataError(f"{name} holds no rows", f"expected are rows of {parser.EXPECTED}")
    if not any(row.examples for row in made):
        what = f"{name} leaves nothing to learn: no row has a supervised token within {max_length} tokens"
        raise DataError(what, "raise max-length" + (", or truncate long rows" if overflow == "skip" else ""))
    return _Tokenized(made, reader.kind)


@dataclass
class _RowReader:
    """Reads rows one at a time, which must be of one shape, or text."""

    tokenizer: Tokenizer
    max_length: int
    system: str | None
    overflow: str
    parser: RowParser
    kind: str = ""  # the shape so far
    first: str = ""  # where the first row of this kind is

    def read(self, where: str, row: Row) -> _TokenizedRow:
        """Raises DataError for a row that cannot be used."""
        shape = self.parser.shape_of(row)
        if self.kind not in ("", "text", shape) and shape != "text":
            what = f"a row of {shape} among rows of {self.kind} ({self.first})"
            raise DataError(what, "keep one shape in a file")
        made = list(self.parser.examples_of(row, shape, self.tokenizer, self.system, self.max_length))
        if self.kind in ("", "text") and self.kind != shape:
            self.kind = shape
            self.first = where
        fitting = _fitting(made, self.max_length, self.overflow)
        return _TokenizedRow(
            row, [fit for _, fit in fitting], groups=max((whole.group for whole in made), default=0),
            truncated=sum(whole.tokens.size > self.max_length for whole, _ in fitting),
            skipped=max(len(made), 1) - len(fitting))  # a row whose answers all have weight 0 makes none


def _fitting(made: Sequence[Example], max_length: int, overflow: str) -> list[tuple[Example, Example]]:
    """(a row's example, what can be learned of it); all of a group or none of it."""
    fits = [(whole, _fit(whole, max_length, overflow)) for whole in made]
    lost = {whole.group for whole, fit in fits if fit is None and whole.group}
    return [(whole, fit) for whole, fit in fits if fit is not None and whole.group not in lost]


def _fit(whole: Example, max_length: int, overflow: str) -> Example | None:
    """The example itself, its start, or None if nothing to learn is left of it."""
    if whole.tokens.size <= max_length:
        return whole
    if overflow == "skip" or not is_supervised(whole.weights[:max_length]).any():
        return None
    return replace(example(whole.tokens[:max_length], whole.weights[:max_length]), group=whole.group)
