"""Feedback that newer feedback takes back: it is neither learned nor held out any more."""

from __future__ import annotations

import sqlite3
from contextlib import suppress

from ...errors import DataError
from .items import FeedbackItem
from .row_kinds import HAS_ANSWER
from .rows import answer_of, read_row

LIVE = "('new', 'used', 'counted')"


def withdraw(db: sqlite3.Connection, new: FeedbackItem) -> None:
    """Withdraws earlier rows that newer feedback replaces: those by which its wrong answer is right, and thumbs down on
    either answer. They are neither learned nor held out any more.
    """
    wrong = (new.rejected or "").strip()
    said = db.execute("SELECT rowid FROM feedback WHERE question = ? AND row IS NOT NULL "
                      f"AND state IN {LIVE}", (new.question,))
    for (rowid,) in said.fetchall():
        text, rejected = db.execute("SELECT row, rejected FROM feedback WHERE rowid = ?", (rowid,)).fetchone()
        with suppress(ValueError, DataError, RecursionError):  # a damaged row says nothing
            right = answer_of(read_row(text)).strip()
            is_thumb_down = not right and (rejected or "").strip() in (wrong, new.answer.strip())
            if is_thumb_down or (right and right == wrong):
                withdraw_earlier(db, rowid)
                db.execute("UPDATE feedback SET state = 'withdrawn' WHERE rowid = ?", (rowid,))


def withdraw_earlier(db: sqlite3.Connection, rowid: int) -> None:
    """Withdraws the rows that this row replaced: right answers that were given earlier to its question. Call it before
    the row leaves, which would otherwise bring the last of them back.
    """
    db.execute(f"UPDATE feedback SET state = 'withdrawn' WHERE state IN {LIVE} AND {HAS_ANSWER} AND rowid < ? AND "
               f"question = (SELECT question FROM feedback WHERE rowid = ? AND {HAS_ANSWER})", (rowid, rowid))
