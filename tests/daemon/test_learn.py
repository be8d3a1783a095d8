"""edgetune.daemon.learning.learner: what a job learns, and what becomes of its rows."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from learners import TRAIN, give, opened
from services import until

from edgetune.daemon.jobs.recipe import TRAIN as TRAIN_ROWS
from edgetune.daemon.jobs.recipe import held_rows
from edgetune.daemon.kinds import feedback as kind
from edgetune.daemon.kinds.feedback import ALL
from edgetune.daemon.learning import feedback as learned_feedback
from edgetune.data.anchors import ROWS_PER_ANCHOR
from edgetune.data.dataset import load_rows
from edgetune.errors import DiskFullError, Interrupted, UsageError

FAR = 1e12  # seconds on the monotonic clock: nobody asked for long


def cancel(service, job):
    service.jobs.cancel(job.id)
    service.jobs.wait(job.id, 60)


@pytest.mark.dev
@pytest.mark.learning
def test_learns_and_refuses(trains):
    """What is right is learned and activated; what contradicts it does not get through, and is set aside."""
    service = trains
    learner = service.learner
    feedback = service.feedback
    service.jobs.train = replace(TRAIN, anchors="auto")
    with pytest.raises(UsageError, match="no new feedback"):
        learner.begin()
    give(service, range(40))
    assert learner.state() == {"on": True, "mode": "off", "learns": "learns when it is told to, not by itself",
                               "method": "sft", "pairs": False, "new_rows": 40, "needed": 10, "waits": "told",
                               "state": "waits until it is told to learn", "unused": ""}
    job = learner.begin()
    assert job.origin == "learn"
    assert learner.state()["waits"] == "job"
    assert job.id in learner.state()["state"]
    with pytest.raises(UsageError, match="is not finished"):
        learner.begin()
    assert job.config["anchors"] == ROWS_PER_ANCHOR
    job = service.jobs.wait(job.id, 60)
    assert job.status == "succeeded"
    verdict = service.adapters.get(job.result).verdict
    assert service.adapters.serving == job.result, verdict
    assert verdict["new"]["rows"] == feedback.counts()["held"]
    assert len(verdict["scores"]) == 40  # what it learned was asked too
    corrected = verdict["corrected"]
    assert corrected["rows"] == 40 - feedback.counts()["held"]
    assert verdict["reason"].startswith(f"{corrected['kept']} of {corrected['rows']} corrected answers kept; ")
    until(lambda: not feedback.unsettled())
    assert feedback.counts()["used"] + feedback.counts()["held"] == 40
    assert {note.reason for note in feedback.list() if not note.held} == {f"learned by {job.id}"}

    give(service, range(100, 130), "off the light off")
    for item in feedback.list(limit=30):
        if item.held:
            feedback.edit(item.id, "on")
    second = service.jobs.wait(learner.begin().id, 60)
    assert (second.status, service.adapters.serving) == ("succeeded", job.result)
    assert "worse" in service.adapters.get(second.result).verdict["reason"]
    until(lambda: feedback.counts()["aside"] == 30)
    assert feedback.waiting() == 0
    ledger = service.jobs.events(second.id)[0]["data"]["verdict"]
    assert ledger["against"] == job.result
    assert len(ledger["scores"]) == ledger["new"]["rows"] + ledger["corrected"]["rows"]
    assert ledger["new"]["rows"] > verdict["new"]["rows"]
    lesson = {"job": job.id, "rows": verdict["new"]["rows"], "before": verdict["new"]["right"]}
    assert [{name: counts[name] for name in lesson} for counts in ledger["rounds"]] == [lesson]
    assert f"questions of an earlier job are right, {lesson['before']} before" in ledger["remembered"]

    third = service.jobs.wait(learner.begin(ALL).id, 60)  # on what was learned, and not on what was refused
    assert third.status == "succeeded"
    anew = service.adapters.get(third.result).verdict
    assert anew["scores"].keys() == verdict["scores"].keys()
    assert [counts["job"] for counts in anew["rounds"]] == [job.id]
    assert feedback.counts()["aside"] == 30
    assert {note.job for note in feedback.list() if note.state == "used"} == {job.id}


KILLED = """
import os, sys
from pathlib import Path
from fake_workers import FakeWorkers
from learners import give, opened
from edgetune.daemon.state.database import Store

def end(sql):
    if sql.startswith("UPDATE feedback SET job"):
        os._exit(9)

connect = Store._connect
def watched(store):
    db = connect(store)
    db.set_trace_callback(end)
    return db

Store._connect = watched
with opened(Path(sys.argv[1]), Path(sys.argv[2]), start_process=FakeWorkers(), learn_rows=10) as service:
    give(service, range(20))
    service.learner.begin()
"""


@pytest.mark.dev
def test_a_kill_while_rows_are_assigned_to_a_job_trains_them_once(tiny_q8, tmp_path, workers):
    """There is either no job, or one that has them: nothing is learned, or held out, twice."""
    done = subprocess.run([sys.executable, "-c", KILLED, tiny_q8, tmp_path], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    assert done.returncode == 9, done.stderr
    with opened(tiny_q8, tmp_path, start_process=workers, learn_rows=10) as service:
        assert (service.jobs.list(), service.feedback.waiting()) == ([], 20)
        assert list(service.jobs.folder.iterdir()) == []
        job = service.learner.begin()
        assert service.feedback.waiting() == 0
        workers.next().judge()
        service.jobs.wait(job.id, 60)
        until(lambda: not service.feedback.unsettled())
        assert {item.job for item in service.feedback.list()} == {job.id}
        assert [each.id for each in service.jobs.list()] == [job.id]


@pytest.mark.dev
def test_what_a_job_reads_does_not_grow_with_what_waits(service, monkeypatch):
    """It looks at the latest rows that it takes, and at no others."""
    monkeypatch.setattr(learned_feedback, "REPLAY_MOST", 32)
    read = []
    statement = service.store.read
    monkeypatch.setattr(service.store, "read", lambda sql, *values: read.append(sql) or statement(sql, *values))
    counts = []
    for numbers in (range(200), range(200, 800)):
        give(service, numbers)
        read.clear()
        job = service.learner.begin()
        counts.append(len([sql for sql in read if "feedback" in sql]))
        assert (job.metadata["new"], job.metadata["held"]) == ("32", "32")
        assert service.feedback.waiting() == numbers.stop - 64
        cancel(service, job)
        until(lambda: not service.feedback.unsettled())
    assert counts[1] <= counts[0] < 200


def test_a_daemon_that_stops_does_not_wait_until_a_job_has_begun(service, monkeypatch):
    give(service, range(40))
    looked = []
    load = kind.load_rows
    monkeypatch.setattr(kind, "load_rows", lambda *given, **options: (
        looked.append(given), service.stopping.set(), load(*given, **options)))
    with pytest.raises(Interrupted, match="the daemon stops"):
        service.learner.begin()
    assert len(looked) == 1
    assert (service.jobs.list(), service.feedback.waiting()) == ([], 40)


def test_all_that_was_learned_is_learned_anew(service):
    """As if it were new, and nothing else; whatever becomes of it, what waits goes on to wait."""
    with pytest.raises(UsageError, match="no feedback was learned yet"):
        service.learner.begin(ALL)
    feedback = service.feedback
    for lesson in range(3):
        give(service, range(10 * lesson, 10 * lesson + 10), f"on {lesson}")
        rows = feedback.training_rows()
        feedback.assign(rows.taken, f"ftjob-{lesson}")
        feedback.settle(f"ftjob-{lesson}", "used")
    give(service, range(5, 15), "off")  # says some of it again
    before = [(item.id, item.state, item.job) for item in feedback.list()]
    job = service.learner.begin(ALL)
    learned = [json.loads(line) for line in (service.jobs.folder / job.id / TRAIN_ROWS).read_text().splitlines()]
    held, rounds = held_rows(service.jobs.folder / job.id)
    cancel(service, job)
    asked = [row["messages"][0]["content"] for row in learned]
    assert len(asked) == 2 * 24  # TRAIN's epochs
    assert not set(asked) & {row["messages"][0]["content"] for row in held}
    assert {row["messages"][-1]["content"] for row in learned} == {"on 0", "on 1", "on 2"}
    assert [rounds.count(f"ftjob-{lesson}") for lesson in range(3)] == [2, 2, 2]
    assert len(held) == 6
    assert [(item.id, item.state, item.job) for item in feedback.list()] == before
    assert "was not activated" not in service.learner.state()["state"]


@pytest.mark.dev
def test_a_lesson_has_batch_and_rate_of_its_different_rows(service):
    """As a training on a file of them has, which are few, though their passes are many rows. Earlier ones count."""
    service.jobs.train = replace(TRAIN, batch_size="auto", lr="auto", epochs="auto", steps=0)
    give(service, range(80))
    job = service.learner.begin()
    new = int(job.metadata["new"])
    rows = (service.jobs.folder / job.id / TRAIN_ROWS).read_text().splitlines()
    cancel(service, job)
    assert (new, job.config["batch_size"], job.config["lr"]) == (64, 6, 1.5e-3)
    assert len(rows) > 10 * new
    feedback = service.feedback
    feedback.assign(feedback.training_rows().taken, "ftjob-earlier")
    feedback.settle("ftjob-earlier", "used")
    give(service, range(100, 130))
    job = service.learner.begin()
    cancel(service, job)
    assert (job.metadata["earlier"], job.metadata["new"]) == ("64", "24")
    assert (job.config["batch_size"], job.config["lr"]) == (8, 2e-3)


@pytest.mark.dev
def test_rows_that_nothing_speaks_against_are_learned_with_the_next(tiny_q8, tmp_path, workers):
    """Also by verdicts of earlier versions. Held-out rows are new again as well; after five jobs it ends."""
    with opened(tiny_q8, tmp_path, start_process=workers, learn="idle", learn_rows=10) as service:
        for name, more, waiting, aside in (("waits", range(30), 30, 0), ("unfinished", range(30, 40), 40, 0),
                                           ("waits", range(40, 50), 50, 0), ("waits", range(50, 60), 60, 0),
                                           ("again", range(60, 70), 40, 30)):
            give(service, more)
            job = service.learner.begin()
            workers.next().judge(False, "no more right", **{name: True})
            service.jobs.wait(job.id, 60)
            until(lambda: service.learner.state()["state"].endswith("was not activated: no more right"))
            assert service.learner.state()["waits"] == "failed"
            taken = service.feedback.training_rows()
            assert (len(taken.taken), len(taken.fresh)) == (waiting, waiting // 5)
            assert (service.feedback.waiting(), service.feedback.counts()["aside"]) == (waiting, aside)
            service.learner.tick(FAR)
            assert service.jobs.table.unfinished("learn") is None


def test_what_was_not_learned_waits_for_more(tiny_q8, tmp_path, workers):
    """A row that the model cannot take fails no job."""
    with opened(tiny_q8, tmp_path, start_process=workers, learn="idle", learn_rows=10) as service:
        give(service, range(30))
        long = service.feedback.add(prompt="turn the light " * 200, correction="on")
        cancel(service, service.learner.begin())
        assert service.feedback.get(long.id).reason == "this model cannot learn it"
        until(lambda: "waits for more feedback" in service.learner.state(FAR)["state"])
        assert service.feedback.waiting() == 30
        give(service, range(30, 31))
        assert service.learner.state(FAR)["state"] == "begins to learn"


def test_rows_are_tokenized_once_before_they_are_learned(service, monkeypatch):
    """However often a job is begun and cancelled, and whatever came in meanwhile."""
    tokenized = []
    monkeypatch.setattr(kind, "load_rows", lambda rows, *args, **options: (
        tokenized.extend(json.dumps(row) for row in rows), load_rows(rows, *args, **options))[1])
    for numbers in (range(30), range(30, 40)):
        give(service, numbers)
        job = service.learner.begin()
        cancel(service, job)
        until(lambda: not service.feedback.unsettled())
    assert len(tokenized) == len(set(tokenized)) == 40


def test_too_little_to_judge_by(service):
    """Five questions are enough, whichever is held out; fewer are where one of them is."""
    held = []
    while not any(held):
        with pytest.raises(UsageError, match=r"no new feedback|on \d questions?, and none of it is held out"):
            service.learner.begin()
        held.append(service.feedback.add(prompt=f"turn the light {len(held)}", correction="on").held)
    assert len(held) <= 5
    assert service.feedback.waiting() == len(held)
    if len(held) == 1:
        with pytest.raises(UsageError, match="all new feedback, on 1 question, is held out"):
            service.learner.begin()
        service.feedback.add(prompt="turn the light off", correction="on")
    service.jobs.cancel(service.learner.begin().id)


def test_rows_are_settled_after_a_crash(tiny_q8, tmp_path, workers):
    """The job ended, and the daemon too, before it could say of the rows what became of them."""
    with opened(tiny_q8, tmp_path, start_process=workers) as service:
        give(service, range(30))
        service.jobs.on_done.clear()
        job = service.learner.begin()
        workers.next().judge()
        assert service.jobs.wait(job.id, 60).status == "succeeded"
        assert service.feedback.unsettled()
    with opened(tiny_q8, tmp_path) as service:
        assert not service.feedback.unsettled()
        assert service.feedback.counts()["used"] > 0


def test_rows_of_a_job_whose_end_a_full_disk_hid_wait_again(service, monkeypatch):
    """At the next look, without a restart."""
    give(service, range(20))
    job = service.learner.begin()

    def refused(*_):
        raise DiskFullError("no room", "make some")

    with monkeypatch.context() as patched:
        patched.setattr(service.feedback, "settle", refused)
        cancel(service, job)
        until(lambda: service.jobs.running is None)
    assert service.feedback.waiting() == 0
    service.learner.tick(0.0)
    assert service.feedback.waiting() == 20
