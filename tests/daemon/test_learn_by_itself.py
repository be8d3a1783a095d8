"""edgetune.daemon.learning.learner: when it begins by itself, and what it does then."""

import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import pytest
from learners import give, opened
from services import until

from edgetune.daemon.jobs import queue
from edgetune.daemon.kinds.base import Starter
from edgetune.daemon.kinds.feedback import ALL
from edgetune.daemon.learning import learner as learn
from edgetune.daemon.learning.learner import Learner
from edgetune.daemon.options import DaemonConfig
from edgetune.errors import TooMuchError, UsageError
from edgetune.machine.governor import Governor
from edgetune.machine.policy import Policy

FAR = 1e12  # seconds on the monotonic clock: nobody asked for long


def learner_of(service, hour, policy, **options):
    """Another learner of the service, at this hour."""
    def local():
        return time.struct_time((2026, 1, 1, hour, 30, 0, 3, 1, 0))

    return Learner([*service.learner.starters.values()], service.jobs, service.batcher,
                   Governor(policy, None, local=local, clock=time.monotonic), replace(service.config, **options),
                   service.store, service.stopping, local)


@pytest.mark.parametrize(("learn", "hours", "said"), [
    ("off", "01:00-06:00", "learns when it is told to, not by itself"),
    ("idle", "01:00-06:00", "learns when nobody has asked for 10 minutes"),
    ("nightly", "01:00-05:00", "learns at night, from 1 to 5 o'clock"),
    ("nightly", "22:30-06:05", "learns at night, from 22:30 to 6:05 o'clock"),
    ("nightly", "12:00-14:00", "learns each day, from 12 to 14 o'clock")])
def test_the_mode_in_words(learn, hours, said):
    assert DaemonConfig(learn=learn, learn_hours=hours).learns == said


def test_when(service, monkeypatch):
    """The fixture needs ten pieces. Where another begins that is no failure: nothing is reported or set aside."""
    def state(hour, now, policy=None, **options):
        found = learner_of(service, hour, policy or Policy(govern=False), **options).state(now)
        return found["waits"], found["state"]

    idle = service.batcher.idle_since
    give(service, range(9))
    assert state(12, idle, learn="idle") == ("rows", "waits for 1 more piece of feedback")
    give(service, range(9, 10))
    assert state(12, idle, learn="idle") == ("time", "waits until nobody asks for 10 minutes")
    assert state(12, idle + learn.IDLE_SECONDS, learn="idle") == ("", "begins to learn")
    assert state(12, FAR, learn="nightly") == ("time", "waits for the hours 01:00-06:00")
    assert state(3, idle, learn="nightly") == ("", "begins to learn")
    waits, why = state(3, idle, Policy(quiet_hours="02:00-04:00"), learn="nightly")
    assert waits == "machine"
    assert "quiet hours" in why
    def busy():
        raise TooMuchError("a job is being begun already")

    give(service, range(30))
    with monkeypatch.context() as patched:
        patched.setattr(service.learner.starters["feedback"], "begin", busy)
        service.learner.tick(FAR)
    assert service.learner.paused_reason == ""
    service.learner.tick(FAR)
    assert [job.origin for job in service.jobs.list()] == ["learn"]


@pytest.mark.parametrize("table", ["feedback", "jobs"])
def test_it_survives_what_goes_wrong(service, tmp_path, monkeypatch, table):
    """Health says it, and learning begins when it is mended, not before a minute has passed. The queue of jobs may
    have looked for its table meanwhile.
    """
    monkeypatch.setattr(queue, "RETRY_SECONDS", 0.02)
    give(service, range(40))
    with closing(sqlite3.connect(tmp_path / "state" / "state.db")) as db:
        db.execute(f"ALTER TABLE {table} RENAME TO elsewhere")
        service.learner.tick(FAR)
        assert any("does not learn by itself" in reason for reason in service.health()["reasons"])
        db.execute(f"ALTER TABLE elsewhere RENAME TO {table}")
    service.learner.tick(FAR)
    assert service.learner.paused_reason
    service.learner.tick(FAR + learn.RETRY_SECONDS)
    until(lambda: service.health()["status"] == "ok")
    assert service.jobs.table.unfinished("learn")


def test_begins_by_itself(tiny_q8, tmp_path, workers, monkeypatch):
    """By its thread, and once."""
    monkeypatch.setattr(learn, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(learn, "IDLE_SECONDS", 0.0)
    with opened(tiny_q8, tmp_path, start_process=workers, learn="idle", learn_rows=25) as service:
        give(service, range(25))  # the last one begins it
        workers.next()
        job, = service.jobs.list()
        assert job.id in service.learner.state()["state"]
        service.jobs.pause(job.id)
        until(lambda: service.jobs.get(job.id).status == "paused")
        assert service.learner.state()["waits"] == "paused"
        assert service.learner.state()["state"] == f"waits: {job.id} is paused, resume or cancel it"
        service.jobs.resume(job.id)
        process = workers.next()
        process.judge()
        assert service.jobs.wait(job.id, 30).result
        until(lambda: service.learner.state()["state"] == "waits for 25 more pieces of feedback")


def learned(service, workers):
    """A feedback job that was activated."""
    give(service, range(30))
    job = service.learner.begin()
    workers.next().judge()
    service.jobs.wait(job.id, 60)
    until(lambda: not service.feedback.unsettled())
    return job


def test_all_is_learned_again_after_some_jobs(tiny_q8, tmp_path, workers):
    """Once: it is no job after which another one is due."""
    with opened(tiny_q8, tmp_path, start_process=workers, learn_rows=25, compact_every=1) as service:
        job = learned(service, workers)
        service.learner.tick(FAR)
        compaction = service.jobs.list()[0]
        assert (compaction.metadata["anew"], compaction.metadata["new"]) == ("yes", job.metadata["new"])
        workers.next().judge()
        service.jobs.wait(compaction.id, 60)
        until(lambda: service.jobs.running is None)
        service.learner.tick(FAR)
        assert len(service.jobs.list()) == 2


def test_what_cannot_begin_leaves_the_others_their_turn(tiny_q8, tmp_path, workers):
    """All that was learned is deleted, so that it cannot be learned again. Nothing is wrong with the daemon."""
    with opened(tiny_q8, tmp_path, start_process=workers, learn_rows=25, compact_every=1) as service:
        learned(service, workers)
        for item in service.feedback.list():
            service.feedback.delete(item.id)
        other = Other()
        service.learner.starters[other.name] = other
        for _ in range(3):
            service.learner.tick(FAR)
        assert other.turns == 1
        assert service.health()["status"] == "ok"
        with pytest.raises(UsageError, match="no feedback was learned yet"):
            service.learner.begin(ALL)


class Other(Starter):
    """A starter that always has enough, and cannot begin."""

    name = "other"
    origin = "api"
    material = "toys"
    doing = "play"
    needed = 1
    turns = 0

    def waiting(self):
        return 1

    def begin(self):
        self.turns += 1
        raise UsageError("nothing here")
