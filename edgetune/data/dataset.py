"""Data files, or rows, to token ids and token weights: a Dataset.

Files: `files`. The shapes of rows, and which of their tokens are supervised: `rows`; rows of other shapes: `formats`.
Batches of examples: `packing`.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from ..errors import DataError, UsageError
from ..llamacpp.tokenizer import Tokenizer
from ..llamacpp.tokenizers import AnyTokenizer
from . import rows as supervised_rows
from .around import Instruction
from .files import Digest, place, read_rows
from .formats import BY_KEYS, Columns, read_as, recognised
from .packing import Example, is_supervised
from .parts import title_of
from .question import canonical, question_digest
from .rows import Row, RowParser, common_system, example, shape_of

if TYPE_CHECKING:
    from typing_extensions import Required, Unpack

# Which rows are held out, if no file of held-out rows is given, is a pure function of the digests of questions. It does
# not depend on the order of rows, and all rows that ask the same are on one side: no held-out question was learned.
SHARE = 10  # one in ten rows is held out
LEAST = 4  # rows, where there are enough
MOST = 256  # rows: measuring more takes long
FEW = 16  # of fewer rows than this one in four is held out; of fewer than LEAST none
TENTH_OF_LABELS = 100  # rows: of labels no smaller tenth is held out, and parts of all rows test a training instead


def held_out_count(rows: int) -> int:
    """The number of rows to hold out of this number."""
    if rows < LEAST:
        return 0
    if rows < FEW:
        return rows // 4
    return min(max(rows // SHARE, LEAST), MOST)


def held_out_indices(rows: Sequence[Row]) -> set[int]:
    """The indices of the held-out rows: of the questions with the lowest digests, at most `held_out_count(len(rows))`
    rows. A question that more rows ask than may still be held out is learned. Empty where all rows ask the same.
    """
    return indices_by_name([question_digest(row) for row in rows])


def indices_by_name(names: Sequence[str]) -> set[int]:
    """The same of rows whose questions have these names (`question_digest`)."""
    asking: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        asking[name].append(i)
    left = held_out_count(len(names))
    chosen: set[int] = set()
    for name in sorted(asking):
        if len(asking[name]) <= left:
            chosen.update(asking[name])
            left -= len(asking[name])
    return chosen


def divide(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """(rows to learn, rows held out), each in their order. Raises DataError for rows that JSON cannot hold."""
    chosen = held_out_indices(rows)
    learned = [row for i, row in enumerate(rows) if i not in chosen]
    return learned, [rows[i] for i in sorted(chosen)]


def digest_of(rows: Sequence[Row]) -> str:
    """The sha256 of rows in their order, whatever the order of their keys."""
    written = "\n".join(canonical(row) for row in rows)
    return f"sha256:{hashlib.sha256(written.encode()).hexdigest()}"


@dataclass(frozen=True)
class Dataset:
    """Tokenized rows. `rows` are those that `examples` came from; a row can give several examples (see `rows`).

    `truncated` counts examples that were cut to max_length; `skipped` those left out: too long and the option says so,
    or nothing to learn in what the cut left. `digest` is the sha256 of the file's bytes, or of the rows. `schema` is
    what `answer_schema` derives from the answers, `system` the system message that all rows have.
    """

    examples: list[Example]
    rows: list[Row]
    kind: str  # a key of SHAPES; text where all of them are
    truncated: int
    skipped: int
    digest: str
    schema: dict[str, Any] | None = None
    system: str = ""

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


class Reading(TypedDict, total=False):
    """Options of reading rows. max_length: tokens of a row. system: the message of rows that have none, or what
    else is put around them. overflow: a
    longer row is cut ("truncate") or left out ("skip"). parser: an objective's `rows`; rows of other `formats` are
    converted for it, and `columns` names their keys. learnable: refuses what can be measured and not learned, an answer
    that is empty.
    """

    max_length: Required[int]
    system: Instruction
    overflow: str
    parser: RowParser
    columns: Columns
    learnable: bool


def load(path: str | os.PathLike[str], tokenizer: AnyTokenizer, **options: Unpack[Reading]) -> Dataset:
    """A data file, tokenized: .jsonl, .json, .csv, .tsv or .txt, as `files` reads it, plain text cut into documents of
    max_length tokens. Raises DataError, which names the line, for what cannot be used.
    """
    return _RowReader(tokenizer, **options).read_file(Path(path)).dataset()


def load_divided(path: str | os.PathLike[str], tokenizer: AnyTokenizer, least: int = 1,
                 **options: Unpack[Reading]) -> tuple[Dataset, Dataset | None]:
    """(rows to learn, rows held out): the file as `load` reads it, divided as `divide` says, among the rows of which
    something can be learned. Either side's digest is of its rows. (All of the file, None) where fewer than `least`
    would be held out.
    """
    return _RowReader(tokenizer, **options).read_file(Path(path)).divided(least)


def load_rows(rows: Sequence[Row], tokenizer: AnyTokenizer, **options: Unpack[Reading]) -> Dataset:
    """Rows of one shape, and text, tokenized as `load` does; a row that is a str is plain text, as in a .txt file."""
    digest = digest_of(rows)
    named = ((f"row {i}", row) for i, row in enumerate(rows, start=1))
    return replace(_RowReader(tokenizer, **options).read_all(named, "the data"), digest=digest).dataset()


@dataclass(frozen=True)
class TokenizedRow:
    """A row with the examples that can be learned of it, whose groups are 1, 2, ... up to `groups`."""

    row: Row
    examples: list[Example]
    groups: int
    truncated: int
    skipped: int


@dataclass(frozen=True)
class Tokenized:
    """All rows of a data set, in their order; the other fields are a Dataset's."""

    rows: list[TokenizedRow]
    kind: str
    digest: str = ""

    def dataset(self) -> Dataset:
        """The set of all rows."""
        from .answer_schema import derive  # here: a training's rows are read by another process
        examples: list[Example] = []
        groups = 0
        for made in self.rows:
            examples += [replace(one, group=groups + one.group) if one.group else one for one in made.examples]
            groups += made.groups
        rows = [made.row for made in self.rows if made.examples]
        return Dataset(examples, rows, self.kind, sum(made.truncated for made in self.rows),
                       sum(made.skipped for made in self.rows), self.digest, derive(rows), common_system(rows))

    def divided(self, least: int) -> tuple[Dataset, Dataset | None]:
        """(rows to learn, rows held out), as of `load_divided`."""
        learnable = [i for i, made in enumerate(self.rows) if made.examples]
        chosen = {learnable[i] for i in held_out_indices([self.rows[i].row for i in learnable])}
        if len(chosen) < least:
            return self.dataset(), None
        learned, held = (Tokenized([made for i, made in enumerate(self.rows) if (i in chosen) == side], self.kind)
                         .dataset() for side in (False, True))
        return replace(learned, digest=digest_of(learned.rows)), replace(held, digest=digest_of(held.rows))


@dataclass
class _RowReader:
    """Reads the rows of one data set, which must be of one shape, or text. The options are those of `Reading`."""

    tokenizer: AnyTokenizer
    max_length: int
    system: Instruction = None
    overflow: str = "truncate"
    parser: RowParser = supervised_rows
    columns: Columns = BY_KEYS
    learnable: bool = False
    kind: str = ""  # the shape so far
    first: str = ""  # where the first row of this kind is

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise UsageError(f"max-length is {self.max_length}", "choose 2 tokens or more")
        if self.overflow not in ("truncate", "skip"):
            raise UsageError(f"overflow is {self.overflow!r}", "choose truncate or skip")

    def read_file(self, path: Path) -> Tokenized:
        """Adds the digest of the file's bytes. A MemoryError says which share of them was read."""
        digest = Digest()
        try:
            rows = ((place(line, path.name), row) for line, row in read_rows(path, digest))
            made = self.read_all(rows, title_of(path))
        except MemoryError:
            raise MemoryError(digest.share_of(path)) from None
        return replace(made, digest=f"sha256:{digest.sha256.hexdigest()}")

    def read_all(self, rows: Iterable[tuple[str, Row]], name: str) -> Tokenized:
        """rows: (where, row), where a row's errors are said to be; name: of all together. The digest stays empty."""
        made = []
        for where, row in rows:
            try:
                made += [self._read(where, each) for each in self._rows_of(row)]
            except DataError as error:
                raise DataError(f"{where}: {error.what}", error.hint) from None
        if not made:
            raise DataError(f"{name} holds no rows", f"expected are rows of {self.parser.EXPECTED}")
        if not any(row.examples for row in made):
            what = f"{name} leaves nothing to learn: no row has a supervised token within {self.max_length} tokens"
            raise DataError(what, "raise max-length" + (", or truncate long rows" if self.overflow == "skip" else ""))
        return Tokenized(made, self.kind)

    def _rows_of(self, given: Row) -> list[Row]:
        return read_as(recognised(given, [self.parser], self.columns), self.parser)

    def _read(self, where: str, row: Row) -> TokenizedRow:
        """Raises DataError for a row that cannot be used."""
        shape = self.parser.shape_of(row)
        if self.kind not in ("", "text", shape) and shape != "text":
            what = f"a row of {shape} among rows of {self.kind} ({self.first})"
            raise DataError(what, "keep one shape in a file")
        if self.learnable:
            self.parser.check_learnable(row)
        tokenizer = cast(Tokenizer, self.tokenizer)  # or whichever the parser reads
        made = list(self.parser.examples_of(row, shape, tokenizer, self.system, self.max_length))
        if self.kind in ("", "text") and self.kind != shape:
            self.kind = shape
            self.first = where
        return tokenized(row, made, self.max_length, self.overflow)


def tokenized(row: Row, made: Sequence[Example], max_length: int, overflow: str) -> TokenizedRow:
    """A row with what can be learned of its examples."""
    fitted = fitting(made, max_length, overflow)
    return TokenizedRow(
        row, [fit for _, fit in fitted], groups=max((whole.group for whole in made), default=0),
        truncated=sum(whole.longest > max_length for whole, _ in fitted),
        skipped=max(len(made), 1) - len(fitted))  # a row whose answers all have weight 0 makes none


def fitting(made: Sequence[Example], max_length: int, overflow: str) -> list[tuple[Example, Example]]:
    """(a row's example, what can be learned of it); all of a group or none of it."""
    fits = [(whole, _fit(whole, max_length, overflow)) for whole in made]
    lost = {whole.group for whole, fit in fits if fit is None and whole.group}
    return [(whole, fit) for whole, fit in fits if fit is not None and whole.group not in lost]


def _fit(whole: Example, max_length: int, overflow: str) -> Example | None:
    """The example itself, its start, or None if nothing to learn is left of it."""
    end = max_length - (whole.longest - whole.tokens.size)
    if whole.tokens.size <= end:
        return whole
    if overflow == "skip" or end < 1 or not is_supervised(whole.weights[:end]).any():
        return None
    start = example(whole.tokens[:end], whole.weights[:end])
    return replace(whole, tokens=start.tokens, weights=start.weights, labels=whole.labels[:start.tokens.size])
