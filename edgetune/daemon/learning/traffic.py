"""The traffic: a uniform sample of the questions that people ask, by which the gate decides.

One question in five is drawn by a key of the daemon, when it is asked and before anybody rates its answer. So the
sample is like all questions, while those that people correct are the ones on which the active adapter is wrong. A drawn
question is never learned. Only the question is kept, and never an answer, for `days` days and not beyond MOST.

People may check answers: they rate drawn questions in the order of their ranks, which the key decides. The questions up
to the last one that they rated, of those that were drawn until then, are a uniform sample again, whoever had corrected
some of them before. If it has LEAST_CHECKED questions, it decides, else all do. If nobody rated the answer to one, the
active adapter's counts as right, whichever adapter answered then. That is never in favour of a new adapter.

Not drawn are answers with variety, answers of other sources than the active model, questions whose request forbids it
(`store`), and questions that were learned before.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...data.question import question_digest
from ...errors import DataError, EdgetuneError, UsageError
from ..jobs.recipe import DrawnQuestions
from ..state.database import Store, dump, now
from ..state.holdout import Holdout
from .items import FeedbackItem, Row, item_of, make_row
from .row_kinds import HAS_ANSWER, RowKind

log = logging.getLogger("edgetune.daemon")
MOST = 1000  # questions that are kept: the latest
ASKED = 256  # questions of a test, the latest
LEAST_CHECKED = 8  # questions that a check reached: fewer say less than all others with silence
UNRATED = 128  # of them without a rating at most: each takes two answers. Older ones do not count, rated or not
LARGEST = 16 << 10  # bytes of a question with its conversation
DAY = 86_400  # seconds
NEWEST = """SELECT * FROM feedback WHERE question = ? AND row IS NOT NULL AND {} AND state != 'withdrawn'
            AND expires_at IS NULL ORDER BY rowid DESC LIMIT 1"""
SILENT = "question NOT IN (SELECT question FROM feedback WHERE row IS NOT NULL AND question IS NOT NULL)"


class DrawnTraffic:
    """The sample in the store, for any number of threads. days: for which a question is kept; 0: nothing is drawn, and
    what was is deleted. active: returns the name of what answers now, the active adapter, or the base's fingerprint.
    """

    def __init__(self, store: Store, holdout: Holdout, days: int, active: Callable[[], str]) -> None:
        self.store = store
        self.holdout = holdout
        self.days = days
        self.active = active
        self._tidy()

    def see(self, content: Mapping[str, Any]) -> None:
        """Draws a question that is asked, or does not. content: {messages, tools} or {prompt}."""
        if not self.days:
            return
        try:
            row = make_row(content.get("messages"), content.get("prompt"), "", content.get("tools"))
            question = question_digest(row, by_shape=True)
            if self.holdout.draws(question) and len(text := dump(row)) <= LARGEST:
                self._keep(question, text)
        except (DataError, UsageError, TypeError, ValueError, RecursionError):
            return  # no feedback could be about it
        except EdgetuneError as error:  # of the disk; the question is answered all the same
            log.warning("a question is not drawn: %s", error)

    def _keep(self, question: str, row: str) -> None:
        with self.store.write() as db:
            if not self.holdout.hold(db, question):
                return
            (last,) = db.execute("SELECT coalesce(max(place), 0) FROM drawn").fetchone()
            db.execute("INSERT INTO drawn (place, created_at, row, question, adapter) VALUES (?, ?, ?, ?, ?) "
                       "ON CONFLICT (question) DO UPDATE SET created_at = excluded.created_at, "
                       "adapter = excluded.adapter", (last + 1, now(), row, question, self.active()))
            db.execute("DELETE FROM drawn WHERE place <= ?", (last + 1 - MOST,))

    def _tidy(self) -> None:
        """Deletes what is older than `days`."""
        old = now() - self.days * DAY if self.days else now() + 1
        with self.store.write() as db:
            gone = db.execute("DELETE FROM drawn WHERE created_at < ?", (old,)).rowcount
        if gone:
            self.store.wipe()

    def names(self) -> set[str]:
        """Returns the digests of all drawn questions."""
        return {row["question"] for row in self.store.read("SELECT question FROM drawn")}

    def rows(self, kind: RowKind) -> DrawnQuestions:
        """Returns the drawn questions that decide, the latest. kind: of the daemon's rows. A question is left out if
        the active adapter's answer was called wrong, without a right one.
        """
        self._tidy()
        active = self.active()
        rated: list[Row] = []
        unrated: list[Row] = []
        every = self.store.read("SELECT * FROM drawn ORDER BY place DESC")
        for drawn in (self._checked(every) or every)[:ASKED]:
            item = self._rating(drawn["question"])
            if item is not None and item.answer:
                rated.append(kind.for_gate(item))
            elif item is None or drawn["adapter"] != active:
                unrated.append(_asked(json.loads(drawn["row"])))
            if len(unrated) == UNRATED:
                break
        return DrawnQuestions(rated, unrated)

    def _checked(self, found: Sequence[sqlite3.Row]) -> list[sqlite3.Row]:
        """Returns those that checks reached: up to the rank of one that was rated, and drawn until then; none, if they
        are fewer than LEAST_CHECKED.
        """
        reached: set[int] = set()
        until = 0
        for row in sorted(found, key=self._rank, reverse=True):
            until = max(until, row["checked"] or 0)
            if row["place"] <= until:
                reached.add(row["place"])
        return [row for row in found if row["place"] in reached] if len(reached) >= LEAST_CHECKED else []

    def _rank(self, drawn: sqlite3.Row) -> str:
        return self.holdout.rank(drawn["question"])

    def check(self, question: str) -> None:
        """Notes that a person rated the answer to a drawn question (a digest) because a check asked for it."""
        with self.store.write() as db:
            db.execute("UPDATE drawn SET checked = (SELECT max(place) FROM drawn) WHERE question = ?", (question,))

    def _rating(self, question: str) -> FeedbackItem | None:
        """Returns the newest feedback on a question: one with a right answer, if there is one."""
        for condition in (HAS_ANSWER, "TRUE"):
            found = self.store.read(NEWEST.format(condition), question)
            if items := self.store.objects("feedback", found, item_of):
                return items[0]
        return None

    def unrated(self, limit: int = 100) -> Sequence[dict[str, Any]]:
        """Returns questions whose answers nobody rated, in the order of a check, as rows of a question."""
        found = self.store.read(f"SELECT row, question FROM drawn WHERE {SILENT}")
        return [_asked(json.loads(drawn["row"])) for drawn in sorted(found, key=self._rank)[:limit]]

    def facts(self) -> dict[str, int]:
        """Returns days, kept (questions), unrated ones, and how many checks reached, if these decide; else 0."""
        found = self.store.read("SELECT place, question, checked FROM drawn")
        [(unrated,)] = self.store.read(f"SELECT count(*) FROM drawn WHERE {SILENT}")
        return {"days": self.days, "kept": len(found), "unrated": unrated, "checked": len(self._checked(found))}

    @staticmethod
    def forget(db: sqlite3.Connection, question: str) -> None:
        """Deletes a question permanently, with its feedback or its prompt; its digest stays, so that it is never
        learned. `db`: a transaction.
        """
        db.execute("DELETE FROM drawn WHERE question = ?", (question,))

    def clear(self) -> int:
        """Deletes all questions permanently; returns how many there were."""
        with self.store.write() as db:
            gone = db.execute("DELETE FROM drawn").rowcount
        self.store.wipe()
        return gone


def _asked(row: Row) -> Row:
    """Returns the question of a row of feedback."""
    if "prompt" in row:
        return {"prompt": row["prompt"]}
    return {**{key: value for key, value in row.items() if key == "tools"}, "messages": row["messages"][:-1]}
