"""The rows of a source that may be mixed: usable, not repeated, and not held out. What is left out is counted.

Some rows repeat others nearly word for word, or share a passage with held-out ones. Candidates come from MinHash
signatures of character 5-grams in bands (Broder 1997); RapidFuzz decides by the edits that turn one text into the
other.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data import rows as supervised
from ...data.files import read_rows
from ...data.formats import recognised
from ...data.question import content_text, user_text
from ...data.words import plain, words_of
from ...errors import DataError, EdgetuneError, install_hint

GRAM = 5  # characters
BANDS, IN_BAND = 24, 3  # of a signature: texts with half of their 5-grams in common meet with a chance of 96 %
WORDS = 8  # of a passage that a held-out row must not share
PRIME = (1 << 31) - 1


class NearDuplicates:
    """Texts seen so far, each with the answer that belongs to it. threshold: the similarity from which two are nearly
    the same, 0 to 1; 1: only where words are equal.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._texts: list[str] = []
        self._equal: set[tuple[str, str]] = set()
        self._bands: dict[tuple[str, int, bytes], list[int]] = defaultdict(list)
        rng = np.random.default_rng(0)
        self._factors = rng.integers(1, PRIME, BANDS * IN_BAND, np.int64)
        self._added = rng.integers(0, PRIME, BANDS * IN_BAND, np.int64)

    def add(self, text: str, answer: str = "") -> bool:
        """Whether a text is new; then it is kept. A text with another answer is new, however alike it is: "lamp 1 on"
        and "lamp 2 on" differ in one character.
        """
        said = plain(text)
        if (said, answer) in self._equal:
            return False
        self._equal.add((said, answer))
        if self.threshold >= 1:
            return True
        keys = [(answer, band, part.tobytes()) for band, part in enumerate(self._signature(said))]
        candidates = {index for key in keys for index in self._bands.get(key, ())}
        if any(similarity(said, self._texts[index]) >= self.threshold for index in sorted(candidates)):
            return False
        for key in keys:
            self._bands[key].append(len(self._texts))
        self._texts.append(said)
        return True

    def _signature(self, text: str) -> NDArray[np.int64]:
        """[BANDS, IN_BAND] the least hashes of the text's 5-grams."""
        grams = {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}
        hashes = np.array(sorted(zlib.crc32(gram.encode()) % PRIME for gram in grams), np.int64)
        mixed = (hashes[:, None] * self._factors + self._added) % PRIME
        least: NDArray[np.int64] = mixed.min(axis=0)
        return least.reshape(BANDS, IN_BAND)


def similarity(one: str, other: str) -> float:
    """1 for equal texts, 0 for texts without a common character: by insertions and deletions."""
    try:
        from rapidfuzz.fuzz import ratio
    except ModuleNotFoundError:
        raise EdgetuneError("near-duplicates are found by the package rapidfuzz, which is not installed",
                            f"{install_hint('rows')}, or drop equal rows only, by near: 1") from None
    return float(ratio(one, other)) / 100


class HeldPassages:
    """Passages of held-out texts. A text overlaps where it shares WORDS words in a row with one, or says the same."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._equal: set[str] = set()
        self._grams: set[tuple[str, ...]] = set()
        for text in texts:
            words = words_of(text)
            self._equal.add(" ".join(words))
            self._grams.update(_grams(words))

    def overlap(self, text: str) -> bool:
        words = words_of(text)
        return " ".join(words) in self._equal or not self._grams.isdisjoint(_grams(words))


def _grams(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


@dataclass(frozen=True)
class SourceItem:
    """A row of a source. fields: its texts by name, which templates may use; None for a conversation of several turns,
    or one with tools or a system message, which is taken as it is.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[Any, ...] | None = None
    fields: Mapping[str, str] | None = None

    @property
    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {"messages": [dict(message) for message in self.messages]}
        return row if self.tools is None else {**row, "tools": list(self.tools)}


@dataclass
class Left:
    """Rows of a source, and how many of them were left out. first_unusable: why the first one cannot be used."""

    read: int = 0
    unusable: int = 0
    repeated: int = 0
    held_out: int = 0
    first_unusable: str = ""
    items: list[SourceItem] = field(default_factory=list)


def read_items(paths: Sequence[Path], near: NearDuplicates, held_out: HeldPassages) -> Left:
    """The rows of these files that may be mixed, in their order. Raises DataError where there are none."""
    left = Left()
    for path in paths:
        for _, row in read_rows(path):
            left.read += 1
            try:
                item = item_of(row)
            except DataError as error:
                left.unusable += 1
                left.first_unusable = left.first_unusable or error.what
                continue
            asked = user_text(item.row)
            if held_out.overlap(asked):
                left.held_out += 1
            elif near.add(asked, answer_of(item)):
                left.items.append(item)
            else:
                left.repeated += 1
    if not left.items:
        names = ", ".join(str(path) for path in paths)
        why = left.first_unusable or f"{left.held_out} are held out, {left.repeated} are repeats"
        raise DataError(f"{names} has no row to mix ({why})", "name files of questions with answers")
    return left


def item_of(row: Any) -> SourceItem:
    """A row as an item. Raises DataError for one that has no question and answer."""
    known = recognised(row, (supervised,))
    if supervised.check_learnable(known) == "text":
        raise DataError("the row is a text without a question", "mix rows of questions with answers")
    assert isinstance(known, Mapping)
    if "messages" not in known:
        others = {name: str(value) for name, value in row.items() if isinstance(value, str | int | float)}
        fields = {**others, "prompt": known["prompt"], "completion": known["completion"]}
        tools = known.get("tools")
        messages = supervised.as_messages(known["prompt"], known["completion"])
        return SourceItem(tuple(messages), tuple(tools) if tools else None, None if tools else fields)
    messages = [dict(message) for message in known["messages"]]
    tools = known.get("tools")
    roles = [message["role"] for message in messages]
    is_turn = roles == ["user", "assistant"] and "tool_calls" not in messages[1] and not tools
    plain_turn = {"prompt": content_text(messages[0]["content"]),
                  "completion": content_text(messages[1]["content"])} if is_turn else None
    return SourceItem(tuple(messages), None if tools is None else tuple(tools), plain_turn)


def answer_of(item: SourceItem) -> str:
    """The last message's text or calls, for comparisons."""
    last = item.messages[-1]
    return plain(f"{content_text(last.get('content'))} {last.get('tool_calls') or ''}")


def held_out_questions(paths: Iterable[Path]) -> list[str]:
    """The questions of held-out rows. Raises DataError."""
    return [asked for path in paths for _, row in read_rows(path)
            if (asked := user_text(recognised(row, (supervised,))))]
