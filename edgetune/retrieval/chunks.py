"""Paragraphs to chunks: as many whole paragraphs, or sentences, as a number of tokens allows, with an overlap.

A heading begins a new chunk once the one before is at least half full, so that short sections share one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .documents import Paragraph

HALF = 2  # a heading ends a chunk that has 1/HALF of its tokens
HEADING_SHARE = 4  # 1/HEADING_SHARE of a chunk's tokens at most are its heading's
_SENTENCE = re.compile(r".+?(?:[.!?]['\")\]]*\s+|\n|$)", re.DOTALL)
_WORDS = re.compile(r"\S+\s*")
Count = Callable[[str], int]


@dataclass(frozen=True)
class Chunk:
    """A piece of a document. heading, page, line: of its beginning, as of Paragraph. tokens: with its heading's."""

    text: str
    heading: str
    page: int
    line: int
    tokens: int

    @property
    def whole(self) -> str:
        """The text with its heading, of which the vector is made."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


@dataclass(frozen=True)
class _Piece:
    text: str
    heading: str
    page: int
    line: int
    record: int
    tokens: int


def chunks(paragraphs: Iterable[Paragraph], count: Count, size: int, overlap: float) -> Iterator[Chunk]:
    """Chunks of at most `size` tokens, by `count`. overlap: the share of a chunk that the next one repeats, where none
    of them begins with a heading.
    """
    taken: list[_Piece] = []
    total = fresh = 0  # tokens taken, and how many pieces of them are no repetition
    for piece in _pieces(paragraphs, count, size):
        new_record = bool(taken) and piece.record != taken[-1].record
        new_heading = bool(taken) and piece.heading != taken[-1].heading
        within = _with_heading(piece, count) if new_heading else piece
        ends = new_record or total + within.tokens > size or (new_heading and total * HALF >= size)
        if ends and fresh:
            yield _chunk(taken, total)
            room = size - piece.tokens - _heading_tokens(piece, count)
            taken = [] if new_heading or new_record else _repeated(taken, piece, min(size * overlap, room))
            total = sum(each.tokens for each in taken) + _heading_tokens(piece, count)
            fresh = 0
        else:
            piece = within
        if not taken:
            total = _heading_tokens(piece, count)
        taken.append(piece)
        total += piece.tokens
        fresh += 1
    if fresh:
        yield _chunk(taken, total)


def _with_heading(piece: _Piece, count: Count) -> _Piece:
    """A piece within a chunk that begins under another heading: it begins with its own."""
    title = piece.heading.rpartition(" > ")[2]
    if not title:
        return piece
    return _Piece(f"{title}\n{piece.text}", piece.heading, piece.page, piece.line, piece.record,
                  piece.tokens + count(title))


def _heading_tokens(piece: _Piece, count: Count) -> int:
    return count(piece.heading) if piece.heading else 0


def _chunk(taken: list[_Piece], total: int) -> Chunk:
    first = taken[0]
    return Chunk("".join(piece.text for piece in taken).strip("\n").rstrip(), first.heading, first.page, first.line,
                 total)


def _repeated(taken: list[_Piece], following: _Piece, most: float) -> list[_Piece]:
    """The last pieces, of `most` tokens together, under the heading of what follows them."""
    found: list[_Piece] = []
    left = most
    for piece in reversed(taken[1:]):
        left -= piece.tokens
        if left < 0 or piece.heading != following.heading:
            break
        found.insert(0, piece)
    return found


def _pieces(paragraphs: Iterable[Paragraph], count: Count, size: int) -> Iterator[_Piece]:
    """Paragraphs, or the sentences of one that has more than half of a chunk, or words of such a sentence."""
    room = size - size // HEADING_SHARE
    for paragraph in paragraphs:
        heading = _shortened(paragraph.heading, count, size // HEADING_SHARE)
        tokens = count(paragraph.text)
        if tokens * HALF <= room:
            yield _Piece(f"{paragraph.text}\n\n", heading, paragraph.page, paragraph.line, paragraph.record, tokens)
            continue
        for place, text, number in _parts(paragraph.text, count, room):
            line = paragraph.line + paragraph.text.count("\n", 0, place) if paragraph.line else 0
            is_last = place + len(text) >= len(paragraph.text)
            yield _Piece(text + "\n\n" * is_last, heading, paragraph.page, line, paragraph.record, number)


def _shortened(heading: str, count: Count, most: int) -> str:
    """A heading of at most that many tokens: its outer parts go first, then what is too long of the last."""
    parts = heading.split(" > ")
    while len(parts) > 1 and count(" > ".join(parts)) > most:
        parts.pop(0)
    words = " > ".join(parts).split(" ")
    while len(words) > 1 and count(" ".join(words)) > most:
        words.pop()
    shortened = " ".join(words)
    return shortened if not shortened or count(shortened) <= most else ""


def _parts(text: str, count: Count, most: int) -> Iterator[tuple[int, str, int]]:
    """(place, text, tokens) of sentences, and of parts of those that are too long."""
    for found in _SENTENCE.finditer(text):
        tokens = count(found[0])
        if tokens <= most:
            if found[0]:
                yield found.start(), found[0], tokens
            continue
        yield from ((found.start() + place, part, number) for place, part, number in _cut(found[0], count, most))


def _cut(text: str, count: Count, most: int) -> Iterator[tuple[int, str, int]]:
    """A long sentence, cut at words; a word that is too long alone is cut into equal parts."""
    begin = 0
    taken = 0
    end = 0
    for word in _WORDS.finditer(text):
        tokens = count(word[0])
        if taken and taken + tokens > most:
            yield begin, text[begin:end], taken
            begin, taken = end, 0
        if tokens > most:
            width = max(1, len(word[0]) * most // tokens // 2)
            for place in range(word.start(), word.end(), width):
                part = text[place:min(place + width, word.end())]
                yield place, part, count(part)
            begin = end = word.end()
            continue
        taken += tokens
        end = word.end()
    if taken:
        yield begin, text[begin:end], taken
