"""Held-out rows, which are never learned: one in five, by a key that only this daemon has.

Each row of a file, and each question that people ask, is ranked by its digest under the key. Questions of feedback that
nobody asked here are counted as they arrive: of each five that follow one another one is held out, at a position that
the key decides. So feedback on 20 questions holds out 4, whatever they are. A client that sends rows cannot compute
which of them the gate will use.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import sqlite3
from bisect import bisect
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ... import disk
from ...errors import DataError, DiskError

log = logging.getLogger("edgetune.daemon")
KEY = "holdout.key"  # in the folder of the state
REPLACED = "holdout.key.damaged"  # an earlier key that was damaged; empty where it was missing
KEY_BYTES = 32
SHARE = 5  # one in five is held out
LEAST = 4  # held-out rows at least: fewer tell little
MOST = 256  # held-out rows at most: more take long to answer
EDGE = f"{2**256 // SHARE:064x}"  # ranks below it are held out
REMEMBERED = 100_000  # questions whose side is kept after their feedback is gone: some 20 MB


class Holdout:
    """The choice of held-out rows. key: of the digests; another key holds out other rows. replaced: a file that exists
    where an earlier key was damaged or missing. Names are digests of rows that are held out as one.
    """

    def __init__(self, key: bytes, replaced: Path | None = None) -> None:
        self.key = key
        self.replaced = replaced
        self._passed: set[str] = set()  # questions that were asked since the start, and not drawn

    def reasons(self) -> list[str]:
        """Returns the reasons why it is degraded, a sentence each."""
        if self.replaced is None or not self.replaced.exists():
            return []
        return [f"{KEY} was damaged or missing, and a new one is used, under which rows may be held out that were "
                f"learned; restore the old one from a copy and remove {self.replaced}, or remove that alone to keep "
                "the new one"]

    def rank(self, name: str) -> str:
        """Returns 64 hexadecimal digits, evenly distributed."""
        return hmac.new(self.key, name.encode(), hashlib.sha256).hexdigest()

    def draws(self, question: str) -> bool:
        """Returns whether a question that is asked is drawn, before anybody rates its answer: one of each SHARE.

        Feedback on one that was not drawn is learned, at least until the daemon starts again.
        """
        if self.rank(question) < EDGE:
            return True
        if len(self._passed) >= REMEMBERED:
            self._passed.clear()
        self._passed.add(question)
        return False

    def hold(self, db: sqlite3.Connection, question: str) -> bool:
        """Holds out a question that was drawn. Returns False if it is on the other side already. `db`: a transaction.
        """
        if (found := self._known(db, question)) is not None:
            return found
        self._decided(db, question, True)
        return True

    def side(self, db: sqlite3.Connection, question: str) -> bool:
        """Returns whether a question of feedback is held out. A new one takes the next place, and stays on its side:
        also where its feedback is deleted and given again, or where another rule or another key decided then. `db`: a
        transaction.
        """
        if (found := self._known(db, question)) is not None:
            return found
        if question in self._passed:
            self._decided(db, question, False)
            return False
        (last,) = db.execute("SELECT max(place) FROM questions WHERE place >= 0").fetchone()
        place = 0 if last is None else last + 1
        held = self.holds_place(place)
        db.execute("INSERT INTO questions (place, name, held) VALUES (?, ?, ?)", (place, question, held))
        db.execute("DELETE FROM questions WHERE place <= ?", (place - REMEMBERED,))
        return held

    @staticmethod
    def _known(db: sqlite3.Connection, question: str) -> bool | None:
        found = db.execute("SELECT held FROM feedback WHERE question = ? AND row IS NOT NULL AND held >= 0 UNION ALL "
                           "SELECT held FROM questions WHERE name = ? LIMIT 1", (question, question)).fetchone()
        return None if found is None else bool(found[0])

    @staticmethod
    def _decided(db: sqlite3.Connection, question: str, held: bool) -> None:
        """Notes a side that no count decided, at a place below 0."""
        (least,) = db.execute("SELECT min(place) FROM questions").fetchone()
        db.execute("INSERT INTO questions (place, name, held) VALUES (?, ?, ?)",
                   (min(least or 0, 0) - 1, question, held))

    def holds_place(self, place: int) -> bool:
        """Returns whether the question that arrived at this place is held out: one of each SHARE."""
        run, position = divmod(place, SHARE)
        return int(self.rank(f"run {run}"), 16) % SHARE == position

    def lowest(self, names: Iterable[str], count: int) -> set[str]:
        """Returns the `count` names with the lowest ranks: those that are held out come first."""
        return set(sorted(set(names), key=self.rank)[:count])

    def divide(self, names: Iterable[str]) -> set[str]:
        """Returns the held-out names of a whole data set: those below EDGE, but LEAST or more, and half of them at
        most.

        Raises DataError for fewer than two names.
        """
        ranked = sorted((self.rank(name), name) for name in set(names))
        if len(ranked) < 2:
            raise DataError("there are fewer than 2 different rows, none can be held out",
                            "add rows, or name a validation file")
        below = bisect(ranked, (EDGE, ""))
        count = min(max(below, LEAST), len(ranked) // 2)
        return {name for _, name in ranked[:count]}

    def spread(self, groups: Mapping[str, Collection[str]], most: int) -> set[str]:
        """Returns at most `most` names, as evenly from all groups as their sizes allow, each group's lowest ranks."""
        chosen: set[str] = set()
        left = most
        by_size = sorted(groups.values(), key=len)
        for number, names in enumerate(by_size):
            share = min(len(names), left // (len(by_size) - number))
            chosen |= self.lowest(names, share)
            left -= share
        return chosen


def open_holdout(folder: Path, in_use: bool = False) -> Holdout:
    """Returns a Holdout with the key that is stored in `folder`. A missing or damaged key is replaced by a new one, and
    the damaged one is kept. in_use: whether something was held out by the earlier key. Raises DiskError.
    """
    path = folder / KEY
    replaced = folder / REPLACED
    try:
        key = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise DiskError(f"cannot read {path}: {error.strerror}", "make it readable, or remove it") from None
    if len(key) != KEY_BYTES:
        if path.exists():
            path.replace(replaced)
        elif in_use:
            replaced.touch()
        for reason in Holdout(key, replaced).reasons():
            log.warning("%s", reason)
        key = secrets.token_bytes(KEY_BYTES)
        with disk.replaced(path) as beside:
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(key)
    return Holdout(key, replaced)
