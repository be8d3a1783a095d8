"""Feedback that leaves: what newer feedback takes back, and what has no room.

At most `feedback_rows` items of `feedback_size` MiB are kept, half of them waiting to be learned.

If a new one needs room, items of no use are removed first, then those that were learned longest ago. Held-out items of
earlier jobs follow, except those that the next job would use.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress

from ...errors import DataError, TooMuchError
from ..options import DaemonConfig
from ..state.database import now
from ..state.holdout import MOST, Holdout
from ..state.uploads import MIB
from .items import FeedbackItem, answer_of, read_row
from .row_kinds import HAS_ANSWER

LIVE = "('new', 'used', 'counted')"
SPARE = 0.01  # share of the limits that is freed at once, so that not every new item has to search for room


def held_out(evaluable: str) -> str:
    """Returns SQL for the newest answer to each held-out question. evaluable: a condition on answers that can be."""
    return f"""SELECT max(rowid) AS rowid, question, job FROM feedback
               WHERE state = 'used' AND held = 1 AND {evaluable} GROUP BY question ORDER BY 1"""


def make_room(db: sqlite3.Connection, config: DaemonConfig, holdout: Holdout, evaluable: str, size: int,
              waits: bool) -> None:
    """Makes room for an item of `size` bytes. waits: whether it is to be learned. Raises TooMuchError if that fails."""
    most = config.feedback_rows
    most_bytes = config.feedback_size * MIB
    waiting, waiting_bytes = _count(db, "WHERE state = 'new'")
    if waits and (waiting >= most // 2 or waiting_bytes + size > most_bytes // 2):
        raise TooMuchError(f"{waiting} rows of feedback ({waiting_bytes / MIB:.1f} MiB) wait to be learned, at "
                           f"most {most // 2} ({most_bytes / 2 / MIB:g} MiB) may wait",
                           "learn them first, or start the daemon with a larger --feedback-rows or --feedback-size")
    count, nbytes = _count(db, "")
    if count < most and nbytes + size <= most_bytes:
        return
    excess = count + 1 - int(most * (1 - SPARE))
    excess_bytes = nbytes + size - int(most_bytes * (1 - SPARE))
    leaving = []
    for found in _dispensable(db, holdout, evaluable):
        if excess <= 0 and excess_bytes <= 0:
            break
        leaving.append((found["rowid"],))
        excess -= 1
        excess_bytes -= found["size"]
    db.executemany("DELETE FROM feedback WHERE rowid = ?", leaving)
    count, nbytes = _count(db, "")
    if count >= most or nbytes + size > most_bytes:
        raise TooMuchError(f"{count} pieces of feedback are kept ({nbytes / MIB:.1f} MiB), at most {most} "
                           f"({config.feedback_size} MiB) may be, and all of them are needed",
                           "learn those that wait, or start the daemon with a larger --feedback-rows or "
                           "--feedback-size")


def spread(found: Sequence[sqlite3.Row], holdout: Holdout, places: int) -> Sequence[int]:
    """Returns rowids of at most `places` of the held-out rows found, as evenly from all jobs as their sizes allow."""
    rounds: dict[str, list[str]] = {}
    for judge in found:
        rounds.setdefault(judge["job"], []).append(judge["question"])
    chosen = holdout.spread(rounds, places)
    return [judge["rowid"] for judge in found if judge["question"] in chosen]


def _dispensable(db: sqlite3.Connection, holdout: Holdout, evaluable: str) -> Iterator[sqlite3.Row]:
    """Yields (rowid, size) of items that may be removed: items of no use first, the oldest of each kind first."""
    useless = f"state IN ('counted', 'aside', 'withdrawn') AND coalesce(expires_at, 0) <= {now()}"
    for which in (useless, "state = 'used' AND held = 0"):
        yield from db.execute(f"SELECT rowid, size FROM feedback WHERE {which} ORDER BY rowid").fetchall()
    kept = {*spread(db.execute(held_out(evaluable)).fetchall(), holdout, MOST)}
    held = db.execute("SELECT rowid, size FROM feedback WHERE state = 'used' AND held = 1 ORDER BY rowid")
    yield from (found for found in held.fetchall() if found["rowid"] not in kept)


def _count(db: sqlite3.Connection, where: str) -> tuple[int, int]:
    """Counts (items, their bytes)."""
    count, nbytes = db.execute(f"SELECT count(*), coalesce(sum(size), 0) FROM feedback {where}").fetchone()
    return count, nbytes


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
