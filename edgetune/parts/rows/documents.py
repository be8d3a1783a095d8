"""Questions and answers from a folder of documents, chunk by chunk.

A model writes questions with short answers in the text's own words; without one, rules make them. An answer is
kept only if it stands in its chunk. With `check`, the model must also find the answer again, by the question and the
chunk alone. Questions that nearly repeat another are dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...options import check_options
from ..documents.chunks import Chunk, chunks
from ..documents.paragraphs import files_of, paragraphs
from . import gaps
from .askers import Asker
from .duplicates import NearDuplicates
from .grounding import DISAGREES, NO_QUESTION, agree, flaw_of
from .options import DocumentOptions
from .output import Made

OnProgress = Callable[[str, float, float], None]
TOKENS_PAIR, TOKENS_CHECK = 80, 60  # of an answer at most
REPEATED = "nearly repeats an earlier question"
ASK = """{text}

Write {count} different questions that people may ask, and that this text answers. Each answer is short, and in the \
text's own words. People do not see the text, so each question says what it is about."""
CHECK = "{text}\n\nAnswer from this text alone, in a few of its words: {question}"


@dataclass(frozen=True)
class Piece:
    """A chunk of a file. name: the file's, with the line or page."""

    name: str
    chunk: Chunk


def make_from_documents(folder: Path, options: DocumentOptions, asker: Asker | None = None,
                        on_progress: OnProgress | None = None) -> Made:
    """Rows of the documents of a folder, or of one. asker: None: questions by rules. `read` counts questions.

    on_progress gets the chunks that were read, and all. Raises UsageError for what is no folder, and the errors of the
    asker. A file that cannot be read is skipped and noted.
    """
    check_options(options)
    made = Made()
    pieces = list(pieces_of(folder, options, made))
    near = NearDuplicates(options.near)
    for number, piece in enumerate(pieces):
        for question, answer in _asked(piece, options, asker, number, made):
            made.read += 1
            flaw = flaw_of(question, answer, piece.chunk.whole)
            if not flaw and not near.add(question):
                flaw = REPEATED
            if not flaw and asker and options.check and not _is_confirmed(piece, question, answer, asker):
                flaw = DISAGREES
            if flaw:
                made.drop(flaw)
                continue
            made.rows.append({"prompt": question, "completion": answer, "source": piece.name})
        if on_progress:
            on_progress("chunks", number + 1, len(pieces))
    made.notes.append(f"{len(pieces)} chunks, questions by {asker.name if asker else 'rules'}")
    return made


def pieces_of(folder: Path, options: DocumentOptions, made: Made) -> Iterator[Piece]:
    """The chunks of all documents, of at most `options.words` words."""
    for file in files_of(folder):
        try:
            for chunk in chunks(paragraphs(file.path), _words, options.words, 0.0):
                place = f"page {chunk.page}" if chunk.page else f"line {chunk.line}"
                yield Piece(f"{file.name}, {place}", chunk)
        except DataError as error:
            made.notes.append(f"{file.name} was skipped: {error.what}")


def _words(text: str) -> int:
    return len(text.split())


def _asked(piece: Piece, options: DocumentOptions, asker: Asker | None, number: int,
           made: Made) -> Iterable[tuple[str, str]]:
    """Questions and answers about a chunk, not checked yet."""
    if asker is None:
        return list(gaps.questions(piece.chunk.text, piece.chunk.heading.replace(" > ", ", ")))
    asked = ASK.format(text=piece.chunk.whole, count=options.questions)
    said = asker.answer(asked, TOKENS_PAIR * options.questions, schema_of(options.questions), options.seed + number)
    found = pairs_in(said)
    if not found:
        made.read += 1
        made.drop(NO_QUESTION)
    return found


def schema_of(count: int) -> dict[str, Any]:
    """The form of an answer: a list of at most `count` questions with answers."""
    text = {"type": "string"}
    pair = {"type": "object", "properties": {"question": text, "answer": text}, "required": ["question", "answer"],
            "additionalProperties": False}
    return {"type": "array", "items": pair, "minItems": 1, "maxItems": count}


def pairs_in(said: str) -> list[tuple[str, str]]:
    """The pairs of an answer, as far as it is whole: the list may be cut, or within a fence."""
    decode = json.JSONDecoder().raw_decode
    found = []
    at = said.find("{")
    while at >= 0:
        try:
            value, end = decode(said, at)
        except ValueError:
            end = at + 1
        else:
            if isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("question", "answer")):
                found.append((value["question"].strip(), value["answer"].strip()))
        at = said.find("{", end)
    return found


def _is_confirmed(piece: Piece, question: str, answer: str, asker: Asker) -> bool:
    again = asker.answer(CHECK.format(text=piece.chunk.whole, question=question), TOKENS_CHECK)
    return agree(answer, again)
