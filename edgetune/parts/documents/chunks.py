"""Paragraphs to chunks: as many whole paragraphs, or sentences, as a number of tokens allows, with an overlap.

A heading begins a new chunk once the one before is at least half full, so that short sections share one.

The time is linear in the text, whatever it holds: `count` gets no more at once than a chunk may have, and each
character a bounded number of times.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .paragraphs import Paragraph

HALF = 2  # a heading ends a chunk that has 1/HALF of its tokens
HEADING_SHARE = 4  # 1/HEADING_SHARE of a chunk's tokens at most are its heading's
LETTERS = 32  # characters that count as a token at least: some vocabularies have one for a word of any length
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
    whole = heading = ""
    for paragraph in paragraphs:
        if paragraph.heading != whole:
            whole = paragraph.heading
            heading = _shortened(whole, count, size // HEADING_SHARE)
        text = paragraph.text
        tokens = _tokens(text, count, room)
        if tokens * HALF <= room:
            yield _Piece(f"{text}\n\n", heading, paragraph.page, paragraph.line, paragraph.record, tokens)
            continue
        line = paragraph.line
        before = 0
        for place, part, number in _parts(text, count, room):
            line += text.count("\n", before, place) if line else 0
            before = place
            is_last = place + len(part) >= len(text)
            yield _Piece(part + "\n\n" * is_last, heading, paragraph.page, line, paragraph.record, number)


def _tokens(text: str, count: Count, most: int) -> int:
    """The tokens of a text, one at least for LETTERS of its characters. A text that has more than `most` by its length
    is not read, so that each costs what a chunk costs.
    """
    least = -(-len(text) // LETTERS)
    return least if least > most else max(least, count(text))


def _shortened(heading: str, count: Count, most: int) -> str:
    """A heading of at most that many tokens: its outer parts go first, then what is too long of the last."""
    def fits(text: str) -> bool:
        return _tokens(text, count, most) <= most

    parts = heading.split(" > ")
    first = bisect_left(range(len(parts) - 1), True, key=lambda at: fits(" > ".join(parts[at:])))
    words = " > ".join(parts[first:]).split(" ")
    end = bisect_left(range(1, len(words) + 1), True, key=lambda at: not fits(" ".join(words[:at])))
    return " ".join(words[:end])


def _parts(text: str, count: Count, most: int) -> Iterator[tuple[int, str, int]]:
    """(place, text, tokens) of sentences, and of parts of those that are too long."""
    for found in _SENTENCE.finditer(text):
        tokens = _tokens(found[0], count, most)
        if tokens <= most:
            yield found.start(), found[0], tokens
            continue
        yield from ((found.start() + place, part, number) for place, part, number in _cut(found[0], count, most))


def _cut(text: str, count: Count, most: int) -> Iterator[tuple[int, str, int]]:
    """A long sentence, cut at words; a word that is too long by itself is cut into parts."""
    begin = 0
    taken = 0
    end = 0
    for word in _WORDS.finditer(text):
        tokens = _tokens(word[0], count, most)
        if taken and taken + tokens > most:
            yield begin, text[begin:end], taken
            begin, taken = end, 0
        if tokens > most:
            for place in range(word.start(), word.end(), most * LETTERS):
                yield from _halved(text, place, min(place + most * LETTERS, word.end()), count, most)
            begin = end = word.end()
            continue
        taken += tokens
        end = word.end()
    if taken:
        yield begin, text[begin:end], taken


def _halved(text: str, begin: int, end: int, count: Count, most: int) -> Iterator[tuple[int, str, int]]:
    """A part of a text, divided in the middle until no part has more than `most` tokens."""
    tokens = _tokens(text[begin:end], count, most)
    if tokens <= most or end - begin < 2:
        yield begin, text[begin:end], tokens
        return
    middle = (begin + end) // 2
    yield from _halved(text, begin, middle, count, most)
    yield from _halved(text, middle, end, count, most)
