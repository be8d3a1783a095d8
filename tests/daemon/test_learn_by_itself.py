"""edgetune.daemon.learning.learner: when it begins by itself, and what it does then."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from learners import give, opened
from services import until

from edgetune.daemon.learning import learner as learn
from edgetune.daemon.learning.learner import Clocks, Learner
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.machine.governor import Governor
from edgetune.machine.policy import Policy


def at(hour: int) -> time.struct_time:
    return time.struct_time((2026, 1, 1, hour, 30, 0, 3, 1, 0))


def learner_of(service: Service, policy: Policy, local: Callable[[], time.struct_time],
               clock: Callable[[], float]) -> Learner:
    """Another learner, with a policy and clocks of its own."""
    governor = Governor(policy, None, local=local, clock=clock)
    return Learner(service.feedback, service.method, service.jobs, service.batcher, governor,
                   service.config, service.stopping, Clocks(local, clock))


def test_when(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    now = service.batcher.idle_since
    hour = 12
    learner = learner_of(service, Policy(govern=False), lambda: at(hour), lambda: now)
    assert learner._blocked_by(9) == "waits for 1 more piece of feedback"
    monkeypatch.setattr(learner, "config", DaemonConfig(learn="idle", learn_rows=10))
    assert learner._blocked_by(10) == "waits until nobody asks for 10 minutes"
    now += learn.IDLE_SECONDS
    assert learner._blocked_by(10) == ""
    monkeypatch.setattr(learner, "config", DaemonConfig(learn="nightly", learn_rows=10))
    assert learner._blocked_by(10) == "waits for the hours 01:00-06:00"
    hour = 3
    assert learner._blocked_by(10) == ""
    quiet = learner_of(service, Policy(quiet_hours="02:00-04:00"), lambda: at(hour), time.monotonic)
    monkeypatch.setattr(quiet, "config", learner.config)
    assert "quiet hours" in quiet._blocked_by(10)


@pytest.mark.parametrize("table", ["feedback", "jobs"])
def test_the_thread_survives_what_goes_wrong(tiny_q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             table: str) -> None:
    """From its first look on; health says it, and learning begins when it is mended."""
    monkeypatch.setattr(learn, "CHECK_SECONDS", 0.3)
    monkeypatch.setattr(learn, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(learn, "RETRY_SECONDS", 0.1)
    database = tmp_path / "state" / "state.db"
    with opened(tiny_q8, tmp_path) as service:
        give(service, range(40))
    with opened(tiny_q8, tmp_path, learn="idle", learn_rows=25) as service, closing(sqlite3.connect(database)) as db:
        db.execute(f"ALTER TABLE {table} RENAME TO elsewhere")
        until(lambda: service.learner.paused_reason)
        assert any("does not learn by itself" in reason for reason in service.health()["reasons"])
        db.execute(f"ALTER TABLE elsewhere RENAME TO {table}")
        until(service.jobs.list)
        until(lambda: not service.learner.paused_reason)
        assert service.health()["status"] == "ok"


def test_begins_by_itself(tiny_q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(learn, "IDLE_SECONDS", 0.0)
    with opened(tiny_q8, tmp_path, learn="idle", learn_rows=25) as service:
        give(service, range(24))
        assert service.learner.why()["state"] == "waits for 1 more piece of feedback"
        give(service, range(24, 30))
        until(service.adapters.list)
        assert service.adapters.list()[0].job == service.jobs.list()[0].id


def test_all_is_learned_anew_by_itself_after_some_lessons(tiny_q8: Path, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: a compaction is no lesson after which another one is due."""
    monkeypatch.setattr(learn, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(learn, "IDLE_SECONDS", 0.0)
    with opened(tiny_q8, tmp_path, learn="idle", learn_rows=25, canary_rise="off", compact_every=1) as service:
        give(service, range(30))
        until(lambda: len(service.jobs.list()) == 2)
        compaction, lesson = service.jobs.list()
        assert lesson.verdict["passed"]
        assert (compaction.metadata["anew"], compaction.metadata["new"]) == ("yes", lesson.metadata["new"])
        assert service.jobs.wait(compaction.id, 60).status == "succeeded"
        assert not service.learner._is_compaction_due()
