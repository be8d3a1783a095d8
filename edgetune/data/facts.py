"""Facts of the rows of a file, read without stopping at one that cannot be used; `check` says what they mean.

Of a row its digests, lengths and place are kept, not the row, so that a file of any size can be checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from ..errors import DataError
from ..llamacpp.tokenizer import Tokenizer
from ..llamacpp.tokenizers import AnyTokenizer
from . import labelled
from . import rows as supervised_rows
from .answer_schema import parsed
from .around import Instruction
from .calls import CallError
from .dataset import TENTH_OF_LABELS, Dataset, Tokenized, TokenizedRow, fitting, indices_by_name, tokenized
from .decision_check import DecisionCheck
from .formats import BY_KEYS, Columns, read_as, recognised
from .packing import Example, is_supervised
from .preferences import chosen_text, is_pair
from .question import digest, question_digest
from .rows import Row, RowParser, check_row
from .thoughts import has_thoughts


@dataclass(frozen=True)
class TokenizeOptions:
    """Options of tokenizing rows; the fields are those of `dataset.load`."""

    tokenizer: AnyTokenizer
    max_length: int
    system: Instruction = None
    overflow: str = "truncate"


@dataclass(frozen=True)
class RowFacts:
    """A row that can be used: where it is, and digests of what it says. `letters` is its answer's length, `asked` the
    question's tokens for an encoder.
    """

    line: int
    shape: str
    digest: str
    question: str
    answer: str | None  # digest; None where a row has no answer of text, or answers typed questions
    letters: int = 0
    is_json: bool = False
    tokens: tuple[int, ...] = ()  # of its examples, at full length
    is_cut: bool = False  # to max_length
    is_lost: bool = False  # nothing to learn is left within max_length
    asked: tuple[int, ...] = ()
    thinks: bool = False  # whether an answer has thoughts


@dataclass(frozen=True)
class RowPart:
    """A piece of a tokenized row; whether its tokens are supervised."""

    text: str
    learned: bool


@dataclass
class Inspection:
    """A file's rows. `refused`: (line, error) of those that cannot be used; `empty`: (line, error) of those that say
    nothing; `sample`: the first usable row as the model sees it; `tokenized`: the usable rows of an encoder, whose
    labels only all of them together show; `decisions`: the typed questions of the rows; `is_of_labels`: whether an
    encoder reads them.
    """

    name: str
    is_of_labels: bool = False
    rows: list[RowFacts] = field(default_factory=list)
    refused: list[tuple[int, DataError]] = field(default_factory=list)
    empty: list[tuple[int, DataError]] = field(default_factory=list)
    sample: list[RowPart] = field(default_factory=list)
    sample_line: int = 0
    decisions: DecisionCheck = field(default_factory=DecisionCheck)
    tokenized: list[TokenizedRow] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.rows) + len(self.refused) + len(self.empty)

    @property
    def lengths(self) -> list[int]:
        """Tokens of all examples, ascending; empty without a tokenizer."""
        return sorted(n for row in self.rows for n in row.tokens)

    def held_out(self) -> int:
        """The number of rows that are held out where no file is named."""
        found = len(indices_by_name([row.question for row in self.rows if not row.is_lost]))
        return 0 if self.is_of_labels and found < TENTH_OF_LABELS else found


def learned_sets(data: Inspection, held_out: Inspection | None) -> list[Dataset | None]:
    """The rows that an encoder would learn and those held out, as `load` and `load_divided` make them of the files."""
    learned, held = (Tokenized(found.tokenized, shape_of(found)) if found else None for found in (data, held_out))
    assert learned
    return [learned.dataset(), held.dataset()] if held else [*learned.divided(TENTH_OF_LABELS)]


def shape_of(found: Inspection) -> str:
    """The shape of all rows, or the first that is not text."""
    shapes = {row.shape: None for row in found.rows}
    return next((shape for shape in shapes if shape != "text"), next(iter(shapes), ""))


def inspect(name: str, rows: Iterable[tuple[int, Any]], tokens: TokenizeOptions | None = None,
            parser: RowParser = supervised_rows, columns: Columns = BY_KEYS) -> Inspection:
    """rows: (line, row), as `files.read_rows` gives them. Raises nothing that it does not raise."""
    found = Inspection(name, parser is labelled)
    for line, given in rows:
        try:
            row = recognised(given, [parser], columns)
            shape = parser.shape_of(row)
            if parser is supervised_rows:
                check_row(row)
        except DataError as error:
            found.refused.append((line, error))
            continue
        try:
            parser.check_learnable(row)
        except DataError as error:
            (found.refused if isinstance(error, CallError) else found.empty).append((line, error))
            continue
        try:
            is_typed = found.decisions.add(line, given, row)
            found.rows.append(_facts(line, row, shape, tokens, parser, found, is_typed))
        except DataError as error:
            found.refused.append((line, error))
    return found


def _facts(line: int, row: Row, shape: str, tokens: TokenizeOptions | None, parser: RowParser, found: Inspection,
           is_typed: bool) -> RowFacts:
    answer = None if is_typed else answer_of(row)
    said: dict[str, Any] = {"answer": None}
    if answer is not None:
        hashed = hashlib.sha256(answer.encode("utf-8", "surrogatepass")).hexdigest()
        said = {"answer": hashed, "letters": len(answer), "is_json": parsed(answer) is not None}
    if tokens is not None:
        tokenizer = cast(Tokenizer, tokens.tokenizer)
        made = [example for each in read_as(row, parser)
                for example in parser.examples_of(each, shape, tokenizer, tokens.system, tokens.max_length)]
        kept = fitting(made, tokens.max_length, tokens.overflow)
        if not isinstance(tokens.tokenizer, Tokenizer):
            found.tokenized.append(tokenized(row, made, tokens.max_length, tokens.overflow))
        said |= {"tokens": tuple(whole.longest for whole in made), "is_lost": not kept,
                 "is_cut": any(whole.longest > tokens.max_length for whole, _ in kept)}
        if parser is labelled:
            said["asked"] = tuple(made[0].tokens.tolist())
        if kept and not found.sample:
            found.sample = parts_of(kept[0][1], tokens.tokenizer)
            found.sample_line = line
    return RowFacts(line, shape, digest(row), question_digest(row), thinks=has_thoughts(row), **said)


def answer_of(row: Row) -> str | None:
    """The text of a row's last answer; of two, of the better one."""
    if isinstance(row, str):
        return None
    if is_pair(row):
        return chosen_text(row)
    if isinstance(row.get("completion"), str):
        return str(row["completion"])
    answers = [message for message in row.get("messages", ()) if message.get("role") == "assistant"]
    content = answers[-1].get("content") if answers else None
    return content if isinstance(content, str) else None


def parts_of(example: Example, tokenizer: AnyTokenizer) -> list[RowPart]:
    """The text of an example, divided where supervision begins and ends."""
    learned = is_supervised(example.weights)
    parts = []
    begin = 0
    for end in range(1, learned.size + 1):
        if end == learned.size or learned[end] != learned[begin]:
            parts.append(RowPart(tokenizer.decode(example.tokens[begin:end].tolist()), bool(learned[begin])))
            begin = end
    return parts
