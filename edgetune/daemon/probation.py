"""Probation: a time after the activation of an adapter in which bad ratings of its answers roll it back.

A thumb down is a bad rating, and so is a correction of an answer. The adapter is rolled back when it has as many bad
ratings as allowed, and fewer good ones. The facts of a probation are kept in the adapter's verdict.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..errors import NotFoundError, UsageError
from .state.adapters import LATEST, Adapters, RegisteredAdapter
from .state.database import Store, now

log = logging.getLogger("edgetune.daemon")
RUNNING = "running"
PASSED = "passed"
ROLLED_BACK = "rolled back"
REPLACED = "replaced"  # before its time was over, by an adapter that was not active before
BAD = "(rating = 'down' OR (rating IS NULL AND rejected IS NOT NULL))"
RATINGS = f"""SELECT coalesce(sum({BAD}), 0) AS bad, coalesce(sum(rating = 'up'), 0) AS good FROM feedback
              WHERE created_at >= ? AND created_at <= ? AND model IN (?, ?, ?, '')"""
ACTIVATED = "SELECT min(seq) AS seq FROM service WHERE adapter = ? AND at >= ?"
LEFT = """SELECT at, adapter IS NULL OR adapter IN (SELECT adapter FROM service WHERE seq < ?1) AS back FROM service
          WHERE seq > ?1 AND base = ?2 ORDER BY seq LIMIT 1"""
SINCE = f"""SELECT coalesce(sum({BAD}), 0) AS bad, coalesce(sum(rating = 'up'), 0) AS good FROM feedback
            WHERE created_at >= ?1 AND model NOT IN (SELECT id FROM adapters WHERE base != ?2)"""


def begun(seconds: int, bad_ratings: int) -> dict[str, Any]:
    """Returns the facts of a probation that begins now."""
    at = now()
    return {"since": at, "until": at + seconds, "bad_ratings": bad_ratings}


class Probations:
    """The probations of a daemon's adapters, for any number of threads."""

    def __init__(self, adapters: Adapters, store: Store) -> None:
        self.adapters = adapters
        self.store = store

    def ratings_since(self, at: int) -> dict[str, int]:
        """Returns the bad and good ratings of answers by this base since then."""
        return dict(self.store.read(SINCE, at, self.adapters.base)[0])

    def look(self) -> None:
        """Rolls the active adapter back if its probation runs and it was rated badly."""
        serving = self.adapters.serving
        if serving is None:
            return
        with suppress(NotFoundError):
            found = self.adapters.get(serving)
            facts = self.facts(found)
            if facts and facts["state"] == RUNNING and facts["bad"] >= facts["bad_ratings"] > 0:
                self._roll_back(found, facts)

    def _roll_back(self, found: RegisteredAdapter, facts: Mapping[str, Any]) -> None:
        if facts["bad"] <= facts["good"]:
            return
        why = f"{found.id} has {facts['bad']} bad ratings and {facts['good']} good ones in its probation"
        with suppress(UsageError):  # another thread did it
            self.adapters.rollback(why, only=found.id)
            kept = {**found.verdict["probation"], "bad": facts["bad"], "good": facts["good"]}
            self.adapters.set_verdict(found.id, {**found.verdict, "probation": kept})
            log.warning("rolled back: %s", why)

    def facts(self, adapter: RegisteredAdapter) -> dict[str, Any] | None:
        """Returns since, until (seconds since 1970), bad_ratings (allowed), bad and good (counted), and state: running,
        passed, rolled back, or replaced by a new adapter before its time was over. None: it has no probation.
        """
        kept = adapter.verdict.get("probation")
        activated = self.store.read(ACTIVATED, adapter.id, kept["since"])[0]["seq"] if kept else None
        if not kept or activated is None:
            return None
        after = self.store.read(LEFT, activated, self.adapters.base)
        ended = after and after[0]["at"] < kept["until"]
        end = after[0]["at"] if ended else kept["until"]
        counts = dict(self.store.read(RATINGS, kept["since"], end, adapter.id, adapter.name or adapter.id,
                                      self.adapters.name + LATEST)[0])
        state = RUNNING if now() < kept["until"] else PASSED
        if ended:
            state = ROLLED_BACK if after[0]["back"] else REPLACED
        facts = {name: kept[name] for name in ("since", "until", "bad_ratings")}
        return {**facts, **counts, **{name: kept[name] for name in counts if name in kept}, "state": state}
