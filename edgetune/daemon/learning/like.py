"""Corrections that count for like questions at once, until a training has learned them.

A question that repeats a corrected one in other words is answered with its correction. Of one that is only somewhat
like corrected ones the model sees these before it, as earlier turns. Questions are compared that consist of one message
of a user, with the same system message or none, or of one prompt. Their vectors, by the encoder of --embeddings, are
stored with the feedback, and leave with it.

A known question is repeated by a new one if four things hold: its likeness is at least the limit; no known question
with another answer is nearly as like; the two do not differ by words in the same place ("paper bin" and "glass bin");
and what the answer takes from the known question ("hall" in `{"room": "hall"}`) is in the new one too.

Each question that arrives with its answer tests the earlier ones, before it joins them. The limit is raised until most
of what would have been answered is right. Likeness is the cosine, scaled so that unrelated questions have 0.
Letters: n known questions, D width of a vector, all of length 1.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from ...data.decisions import typed_in
from ...data.letters import read_asked
from ...data.question import digest, user_text
from ...data.words import words_of
from ...errors import UsageError
from ...formats.gguf import fingerprint
from ...serving.completion import Completion
from ...serving.neighbours import LEAST, Floats, Neighbours, limit_of_repeats
from ..embeddings import Embeddings
from ..sources import SIMILAR, AskedQuestion
from .items import FeedbackItem, item_of
from .recall import Recall

EXAMPLES = 4  # corrections that the model sees before a question
LIKE = 0.4  # their least likeness
NAMED = 8  # bytes of a stored vector that name its encoder
RECENT = 32  # texts whose vectors are kept
TOGETHER = 64  # vectors that are made, and stored, at once
NEW = """SELECT rowid AS place, * FROM feedback WHERE rowid IN (
             SELECT rowid FROM feedback WHERE rowid > ? AND row IS NOT NULL AND state NOT IN ('withdrawn', 'aside')
             ORDER BY rowid DESC LIMIT ?) ORDER BY rowid"""
MARGIN = 0.1  # by which questions with other answers are less like
SAME_FRAME = 0.7  # share of words in order, from which on a replaced word makes another question
TESTS = 1000  # the latest, by which the limit is set
MOST = 4096  # known questions, the latest
STEM = 4  # letters of a word that decide, at least, where endings differ
# of which no two have to do with each other
UNRELATED = ("What time does the train to Lisbon leave?", "How do I remove red wine from a carpet?",
             "Who painted the ceiling of this church?", "The compressor makes a loud noise when it starts.",
             "Please translate this letter into Polish.", "Which medicine helps against hay fever?",
             "Add two litres of milk to the shopping list.", "What is the boiling point of ethanol?",
             "My invoice from March has the wrong address.", "Is there a playground near the hotel?",
             "How many goals did the home team score?", "Turn the heating in the bathroom down.")


@dataclass(frozen=True)
class _Asked:
    """A question that can be like others. group: of those that it is compared with."""

    group: str
    text: str


class LikeRecall:
    """The corrections of a service as answers to like questions, for any number of threads. recall: answers exact
    repeats, and knows which corrections count.
    """

    name: ClassVar[str] = Recall.name
    place: ClassVar[int] = SIMILAR

    def __init__(self, recall: Recall, embeddings: Embeddings) -> None:
        assert embeddings.encoder is not None
        self._recall = recall
        self._store = recall.store
        self._embeddings = embeddings
        self._encoder = hashlib.sha256(fingerprint(embeddings.encoder.gguf).encode()).digest()[:NAMED]
        self._groups: dict[str, Alike] = {}
        self._base: float | None = None  # of Alike; None: not measured yet
        self._vector = lru_cache(RECENT)(self._made)  # each question needs it several times
        self._seen = 0  # the last rowid that was read
        self._turn = threading.Lock()

    def answer(self, asked: AskedQuestion) -> Completion | None:
        """Returns the correction of the question that this one repeats in other words, or None."""
        if not self._recall.serves(asked) or (found := self.repeated(asked.content)) is None:
            return None
        item, likeness = found
        return self._recall.completion(item, asked, likeness=round(likeness, 3))

    def repeated(self, content: Mapping[str, Any]) -> tuple[FeedbackItem, float] | None:
        """Returns the correction of the question that one repeats, and their likeness, or None."""
        if (asked := _asked(content)) is None:
            return None
        with self._turn:
            self._read_new()
            if (group := self._groups.get(asked.group)) is None or not len(group):
                return None
            vector = self._vector(asked.text)
            while vector is not None and (found := group.repeated(asked.text, vector)):
                known = found[0]
                newest = self._recall.newest(known.key)
                if newest is None or newest.answer != known.answer:  # deleted, withdrawn or expired
                    group.forget(known.key)
                    earlier = self._vector(known.text) if newest else None
                    if newest and earlier is not None:
                        group.learn(KnownQuestion(known.key, known.text, newest.answer), earlier)
                    continue
                disputed = self._recall.is_disputed(content, newest.answer)
                return (newest, found[1]) if self._recall.counts(newest) and not disputed else None
        return None

    def examples(self, content: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
        """Returns the corrections that the model should see before a question, as turns, the most like one last; none
        where a correction answers it.
        """
        asked = _asked(content)
        if asked is None or "messages" not in content or model not in self._recall.models:
            return []
        if self._recall.find(content) or self.repeated(content):
            return []
        with self._turn:
            group = self._groups.get(asked.group)
            vector = self._vector(asked.text) if group is not None and len(group) else None
            near = group.nearest(vector, 2 * EXAMPLES, LIKE) if group is not None and vector is not None else ()
        items = [item for known, _ in near if (item := self._recall.newest(known.key)) and self._recall.counts(item)]
        return [turn for item in reversed(items[:EXAMPLES]) for turn in _turns(item)]

    # ---- vectors ------------------------------------------------------------------------------------------------

    def _read_new(self) -> None:
        """Adds the feedback that came since the last question. Of very much the newest counts."""
        rows = self._store.read(NEW, self._seen, MOST)
        if not rows:
            return
        if self._base is None:
            vectors = self._embeddings.embed(UNRELATED, truncate=True).vectors
            self._base = base_of(vectors)
        for begin in range(0, len(rows), TOGETHER):
            part = rows[begin : begin + TOGETHER]
            stored = {row["id"]: (row["place"], row["vector"]) for row in part}
            items = [(item, asked) for item in self._store.objects("feedback", part, item_of)
                     if item.row is not None and (asked := _asked_of(item))]
            for (item, asked), vector in zip(items, self._vectors(items, stored), strict=True):
                group = self._groups.setdefault(asked.group, Alike(self._base))
                if vector is not None:
                    group.learn(KnownQuestion(item.question, asked.text, item.answer, item.rejected), vector)
            self._seen = part[-1]["place"]

    def _vectors(self, items: Sequence[tuple[FeedbackItem, _Asked]],
                 stored: Mapping[str, tuple[int, bytes | None]]) -> list[Floats | None]:
        """Returns the vectors of items; those that are not stored are made, and stored. None: a text of marks alone."""
        known = {id: _read(kept, self._encoder, self._embeddings.width()) for id, (_, kept) in stored.items()}
        made = {item.id: vector for item, asked in items if known[item.id] is None
                and (vector := self._vector(asked.text)) is not None}
        if made:
            with self._store.write() as db:
                db.executemany("UPDATE feedback SET vector = ? WHERE rowid = ? AND id = ?",
                               [(self._encoder + vector.astype(np.float16).tobytes(), stored[id][0], id)
                                for id, vector in made.items()])
        return [made.get(item.id, known[item.id]) for item, _ in items]

    def _made(self, text: str) -> Floats | None:
        """Returns the vector of a text; None: it has nothing but marks."""
        try:
            found: Floats = self._embeddings.embed([text], truncate=True).vectors[0]
        except UsageError:
            return None
        return found


def _read(kept: bytes | None, encoder: bytes, width: int) -> Floats | None:
    """Returns a stored vector [width]; None where there is none of this encoder."""
    if not isinstance(kept, bytes) or kept[:NAMED] != encoder or len(kept) != NAMED + 2 * width:
        return None
    vector = np.frombuffer(kept[NAMED:], np.float16).astype(np.float32)
    return vector if np.isfinite(vector).all() else None


def _asked(content: Mapping[str, Any]) -> _Asked | None:
    """Returns what is compared of a question; None where it has more than one turn, or tools, or is a typed one: about
    a like state the model decides, with a probability.
    """
    if content.get("tools") or typed_in(content.get("messages") or ()):
        return None
    if isinstance(prompt := content.get("prompt"), str):
        return _Asked("prompt", prompt) if prompt.strip() else None
    *before, last = content.get("messages") or [{}]
    if len(before) > 1 or last.get("role") != "user" or not (text := user_text({"messages": [last]})):
        return None
    if read_asked(text):
        return None
    if not before:
        return _Asked("chat", text)
    if before[0].get("role") != "system" or not isinstance(before[0].get("content"), str):
        return None
    return _Asked(digest(before[0]["content"]), text)


def _asked_of(item: FeedbackItem) -> _Asked | None:
    """Returns what is compared of the question of feedback."""
    row = item.row or {}
    return _asked({**row, "messages": row["messages"][:-1]} if "messages" in row else row)


def _turns(item: FeedbackItem) -> list[dict[str, Any]]:
    asked = _asked_of(item)
    assert asked is not None
    return [{"role": "user", "content": asked.text}, {"role": "assistant", "content": item.answer}]


# ---- what is like ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnownQuestion:
    """A question that is known. answer: the right one; "" where none is known. wrong: a wrong one, or None."""

    key: str
    text: str
    answer: str
    wrong: str | None = None


class Alike:
    """Known questions. base: the cosine of unrelated questions. limit: the least likeness of a repeat; above 1: nothing
    is one. For one thread at a time.
    """

    def __init__(self, base: float) -> None:
        self.limit = LEAST
        self._known: list[KnownQuestion] = []
        self._near = Neighbours(base=base)  # in the order of _known
        self._tests: list[tuple[float, bool]] = []  # likeness of what was recalled, whether it is right

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, known: KnownQuestion, vector: Floats) -> None:
        """Adds a question [D], which tests the earlier ones first. It replaces the one of the same key."""
        self._test(known, vector)
        self.forget(known.key)
        if not known.answer:
            return
        if len(self._known) == MOST:
            self.forget(self._known[0].key)
        self._near.add(vector)
        self._known.append(known)

    def forget(self, key: str) -> None:
        """Removes a question, if it is known."""
        for i, each in enumerate(self._known):
            if each.key == key:
                del self._known[i]
                self._near.remove(i)
                return

    def repeated(self, text: str, vector: Floats) -> tuple[KnownQuestion, float] | None:
        """The known question that a new one [D] repeats, and its likeness; None where it is not sure."""
        found = self._nearest(text, vector)
        return found if found and found[1] >= self.limit else None

    def nearest(self, vector: Floats, count: int, least: float) -> Sequence[tuple[KnownQuestion, float]]:
        """The `count` known questions that are most like one, the most like first, with their likeness: `least` or
        more.
        """
        if not self._known:
            return ()
        found = zip(*self._near.nearest(vector, count), strict=True)
        return [(self._known[i], float(likeness)) for i, likeness in found if likeness >= least]

    def _nearest(self, text: str, vector: Floats) -> tuple[KnownQuestion, float] | None:
        """The known question that another repeats if LEAST is the limit."""
        if not self._known:
            return None
        likeness = self._near.likeness(vector)
        best = int(likeness.argmax())
        found = self._known[best]
        if likeness[best] < LEAST:
            return None
        near = np.flatnonzero(likeness > likeness[best] - MARGIN)
        has_rivals = any(self._known[i].answer != found.answer for i in near)
        if has_rivals or is_swapped(found.text, text):
            return None
        return (found, float(likeness[best])) if has_values(found.answer, found.text, text) else None

    def _test(self, known: KnownQuestion, vector: Floats) -> None:
        found = self._nearest(known.text, vector)
        if found is None or found[0].key == known.key:
            return
        said = found[0].answer
        if known.answer or said == known.wrong:
            self._tests = [*self._tests, (found[1], said == known.answer)][-TESTS:]
            self.limit = limit_of_repeats(self._tests)


def base_of(vectors: Floats) -> float:
    """The mean cosine of different questions [n, D], of length 1."""
    count = len(vectors)
    return float(((vectors @ vectors.T).sum() - count) / (count * (count - 1)))


def is_swapped(one: str, other: str) -> bool:
    """Whether two questions are the same but for words in the same place, which make them different questions."""
    first, second = words_of(one), words_of(other)
    found = SequenceMatcher(None, [*map(_stem, first)], [*map(_stem, second)], autojunk=False)
    return found.ratio() >= SAME_FRAME and any(code[0] == "replace" for code in found.get_opcodes())


def has_values(answer: str, known: str, new: str) -> bool:
    """Whether a new question has the words that the answer takes from the known one, and no other numbers."""
    of_new = {*map(_stem, words_of(new))}
    of_known = {*map(_stem, words_of(known))}
    is_form = answer.lstrip()[:1] in ("{", "[", "<")  # JSON or markup, in which words of the question are values
    taken = {*map(_stem, words_of(answer))} & of_known if is_form else set()
    numbers = {word for word in of_new ^ of_known if any(map(str.isdigit, word))}
    return taken <= of_new and not numbers


def _stem(word: str) -> str:
    """A word without an ending of English, so that "keys" and "key" are one word."""
    found = re.sub(r"(?:ing|ed|es|s)$", "", word)
    return found if len(found) >= STEM - 1 else word
