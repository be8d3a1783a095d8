"""The states of jobs in the queue, with processes that do what a test tells them."""

import errno
import shutil
import threading
import time
from dataclasses import replace

import pytest
from services import LONG, SMALL, answers, open_service, until, upload
from thread_workers import ThreadWorker

from edgetune.daemon.api.fine_tuning import job_object
from edgetune.daemon.jobs import queue as work
from edgetune.daemon.jobs.process import SilentError
from edgetune.daemon.jobs.worker import STOPPED
from edgetune.errors import TooMuchError, UsageError


@pytest.fixture
def service(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(work, "RETRY_SECONDS", 0.05)
    with open_service(tmp_path, start_process=workers) as service:
        yield service


def begin(service):
    return service.jobs.create(service.name, upload(service), hyperparameters=SMALL)


def succeeds(service, workers, *jobs):
    """The last one; the processes that are next end with a verdict."""
    for job in jobs:
        workers.next().judge()
        done = service.jobs.wait(job.id, 30)
        assert done.status == "succeeded"
    return done


def said(service, job):
    return [event["message"] for event in service.jobs.events(job.id, limit=100)]


def test_the_thread_outlives_a_folder_that_is_out_of_reach(service, workers):
    """As of a card that is unmounted for a moment: also where another folder is in its place."""
    away = service.jobs.folder.with_name("away")
    for place in (False, True):
        workers_job = begin(service)
        running = workers.next()
        waiting = begin(service)
        service.jobs.folder.rename(away)
        if place:
            service.jobs.folder.mkdir()
        running.end({"event": "stopped"}, 75)
        until(lambda: service.jobs.paused_reason)
        assert service.health()["status"] == "degraded"
        if place:
            service.jobs.folder.rmdir()
        away.rename(service.jobs.folder)
        succeeds(service, workers, workers_job, waiting)
    assert service.health()["status"] == "ok"


def test_the_thread_outlives_any_error(service, workers, monkeypatch):
    """Health names one that died."""
    with monkeypatch.context() as patched:
        def broken(*_):
            raise RuntimeError("a bug")

        patched.setattr(service.jobs.table, "next", broken)
        job = begin(service)
        until(lambda: "a bug" in service.jobs.paused_reason)
    succeeds(service, workers, job)
    assert service.health()["status"] == "ok"
    died = threading.Thread(target=lambda: None, name="learn")
    died.start()
    died.join()
    service.learner.thread = died
    health = service.health()
    assert health["status"] == "degraded"
    assert "learn" in health["reasons"][0]


def damaged(folder, lost):
    """Whether the folder of a job lost a file, or itself; "=": its content."""
    path = folder / lost.removesuffix("=")
    if lost.endswith("="):
        path.write_text("{")
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.dev
@pytest.mark.parametrize("lost", ["run/metrics.jsonl", "run/metrics.jsonl=", "run/run.json", "run/adapter.gguf", "run",
                                  ""])
def test_a_job_that_lost_a_file_after_its_training_fails_and_the_next_one_begins(service, workers, lost):
    job, after = begin(service), begin(service)
    process = workers.next()
    process.train()
    damaged(process.folder, lost)
    process.end({"event": "judged", "verdict": {"passed": True, "reason": "good", "scores": {}, "against": None}})
    ended = service.jobs.wait(job.id, 30)
    assert (ended.status, ended.result, service.adapters.serving) == ("failed", None, None)
    assert ended.error["message"]
    succeeds(service, workers, after)
    assert service.health() == {"status": "ok", "reasons": []}


@pytest.mark.dev
@pytest.mark.parametrize("lost", ["train.jsonl", "held.jsonl", ""])
def test_a_job_that_lost_its_rows_fails_in_a_sentence(tmp_path, lost):
    """In earnest. A restart finds it so."""
    with open_service(tmp_path, start_process=ThreadWorker) as service:
        job = service.jobs.create(service.name, upload(service), hyperparameters=LONG)
        until(lambda: (service.jobs.folder / job.id / "run").exists())
        service.jobs.pause(job.id)
        until(lambda: service.jobs.running is None)
    folder = tmp_path / "state" / "runs" / job.id
    with open_service(tmp_path, start_process=ThreadWorker) as service:
        after = begin(service)
        damaged(folder, lost)
        service.jobs.resume(job.id)
        ended = service.jobs.wait(job.id, 60)
        assert ended.status == "failed"
        assert str(folder / lost).rstrip("/") in ended.error["message"]
        assert service.jobs.wait(after.id, 60).status == "succeeded"
        assert service.health() == {"status": "ok", "reasons": []}


def test_where_no_process_can_start_the_job_waits(service, workers):
    workers.errors = [TooMuchError("no process can be started: Cannot allocate memory"), OSError(errno.EMFILE, "files")]
    job = begin(service)
    until(lambda: service.jobs.paused_reason)
    succeeds(service, workers, job)


def test_a_process_that_hangs_or_fails_fails_its_job_and_the_next_one_begins(service, workers):
    hangs, fails, after = begin(service), begin(service), begin(service)
    process = workers.next()
    process.emit(SilentError("the training process did nothing for 6 hours"))
    error = service.jobs.wait(hangs.id, 30).error
    assert error
    assert "6 hours" in error["message"]
    assert "kill" in process.commands
    workers.next().fail("NumericsError", "the loss is nan")
    error = service.jobs.wait(fails.id, 30).error
    assert error
    assert (error["code"], error["message"]) == ("NumericsError", "the loss is nan")
    succeeds(service, workers, after)
    until(lambda: not any(service.jobs.folder.iterdir()))


def test_work_that_does_not_fit_now_is_kept(service, workers):
    """The job is paused, and continues where it was when a person resumes it."""
    job = begin(service)
    process = workers.next()
    process.train()
    process.fail("UsageError", "this does not fit: 100 MiB", resumable=True)
    until(lambda: service.jobs.get(job.id).status == "paused")
    assert (process.folder / "run").exists()
    assert any("100 MiB" in text for text in said(service, job))
    reason, = service.health()["reasons"]
    assert job.id in reason
    assert "100 MiB" in reason
    service.jobs.resume(job.id)
    until(lambda: not service.health()["reasons"])
    again = workers.next()
    assert again.folder == process.folder
    assert (again.folder / "run").exists()
    again.judge()
    assert service.jobs.wait(job.id, 30).status == "succeeded"


def test_a_job_that_a_person_paused_is_no_reason_for_concern(service, workers):
    job = begin(service)
    workers.next()
    service.jobs.pause(job.id)
    until(lambda: service.jobs.get(job.id).status == "paused")
    assert service.health()["status"] == "ok"


def adapter(service, workers):
    """One that was activated."""
    return str(succeeds(service, workers, begin(service)).result)


@pytest.mark.dev
@pytest.mark.parametrize("deletes", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_roll_back_while_a_job_trains_is_not_overruled(service, workers, deletes, fails):
    """It is compared with what is active at the end, also where the other adapter was deleted meanwhile: a failure to
    compare with one that is gone is none.
    """
    first = adapter(service, workers)
    job = begin(service)
    process = workers.next()
    process.step()
    assert service.adapters.rollback("a person's word") is None
    if deletes:
        service.adapters.delete(first)
    if fails:
        process.train()
        process.fail("FormatError", "there is no adapter")
    else:
        process.judge()
    again = workers.next()
    assert again.task["serving"] is None
    again.judge(False)
    job = service.jobs.wait(job.id, 30)
    assert job.status == "succeeded"
    assert service.adapters.get(str(job.result)).verdict["against"] is None
    assert sum("evaluated again" in text for text in said(service, job)) == 1


@pytest.mark.dev
@pytest.mark.parametrize("changes", [1, 9])
def test_a_word_at_the_last_moment_is_not_overruled(service, workers, changes, monkeypatch):
    """The active adapter changes after the verdict, while the new one is loaded: it is evaluated again, a few times."""
    first = adapter(service, workers)
    load = service.batcher.load
    left = changes

    def load_and_change(name, path):
        nonlocal left
        load(name, path)
        if left:
            left -= 1
            service.adapters.promote(None if service.adapters.serving else first, "a person's word")

    monkeypatch.setattr(service.batcher, "load", load_and_change)
    job = begin(service)
    for _ in range(1 + min(changes, work.REJUDGED)):
        workers.next().judge()
    job = service.jobs.wait(job.id, 30)
    assert sum("evaluated again" in text for text in said(service, job)) == min(changes, work.REJUDGED)
    made = service.adapters.get(str(job.result))
    assert len(service.adapters.list()) == 2
    assert made.state == ("serving" if changes == 1 else "candidate")
    assert any(f"changed {work.REJUDGED + 1} times" in text for text in said(service, job)) == (changes > 1)


@pytest.mark.dev
def test_deaths_count_for_one_job_and_since_its_last_step(service, workers):
    first = begin(service)
    second = begin(service)
    for _ in range(work.DEATHS - 1):
        workers.next().end(code=-9)
    until(lambda: deaths(service, first) == work.DEATHS - 1)
    service.jobs.cancel(first.id)
    workers.next().end(code=-9)
    running = workers.next()
    while running.folder.name == first.id:
        running = workers.next()
    if running.folder.name == second.id:
        running.judge()
    assert service.jobs.wait(second.id, 30).status == "succeeded"
    job = begin(service)
    for number in range(2 * work.DEATHS):
        process = workers.next()
        process.step(1)
        process.end(code=-9)
        until(lambda number=number: deaths(service, job) == number + 1)
    for _ in range(work.DEATHS - 1):
        workers.next().end(code=-9)
    error = service.jobs.wait(job.id, 30).error
    assert error
    assert error["code"] == "died"


def deaths(service, job):
    return sum("signal 9" in text for text in said(service, job))


def test_jobs_can_be_steered_while_a_process_does_not_read_its_task(service, workers, monkeypatch):
    reads = threading.Event()
    begun = threading.Event()

    class Slow(type(workers())):
        def begin(self, task):
            begun.set()
            assert reads.wait(30)
            super().begin(task)

    monkeypatch.setattr("fake_workers.FakeProcess", Slow)
    job = begin(service)
    assert begun.wait(30)
    started = time.monotonic()
    assert service.jobs.pause(job.id).status == "pausing"
    assert begin(service).status == "queued"
    assert time.monotonic() - started < 5
    reads.set()
    until(lambda: service.jobs.get(job.id).status == "paused")


def test_a_job_is_told_how_many_adapters_were_refused_since_one_passed(service, workers):
    """Each verdict has its number; those of edgetune 0.1.0 have none, and a job that evaluated nothing neither."""
    asked = []
    for passed, facts in ((False, {"test": 1}), (False, {"test": 2}), (False, {}), (True, {"test": 3}), (True, {})):
        job = begin(service)
        worker = workers.next()
        asked.append(worker.task["tests_before"])
        worker.judge(passed, **facts)
        service.jobs.wait(job.id, 30)
    assert asked == [0, 1, 2, 2, 0]


def test_pause_resume_cancel(service, workers):
    first = begin(service)
    second = begin(service)
    third = begin(service)
    process = workers.next()
    process.saves = False
    process.step()
    until(lambda: (service.jobs.get(first.id).progress or {}).get("step") == 1)
    assert service.jobs.running
    assert service.jobs.running.id == first.id
    assert service.jobs.pause(first.id).status == "pausing"
    assert process.commands[-1] == "stop"
    process.end({"event": "stopped"}, STOPPED)
    assert service.jobs.cancel(third.id).status == "cancelled"
    succeeds(service, workers, second)  # its turn came
    with pytest.raises(UsageError, match=f"the job {first.id} is paused"):
        service.jobs.pause(first.id)
    with pytest.raises(UsageError, match="is succeeded"):
        service.jobs.cancel(second.id)
    with pytest.raises(UsageError, match="is cancelled; resume one that is paused"):
        service.jobs.resume(third.id)
    assert service.jobs.resume(first.id).status == "queued"
    succeeds(service, workers, first)
    assert [found.id for found in service.jobs.list()] == [third.id, second.id, first.id]
    assert [found.id for found in service.jobs.list(third.id, 1)] == [second.id]
    running = begin(service)
    process = workers.next()
    assert service.jobs.cancel(running.id).status == "cancelled"
    assert process.commands[-1] == "kill"
    until(lambda: not process.folder.exists() and service.jobs.running is None)
    assert len(service.adapters.list()) == 2


def test_the_multiplier_is_told_as_it_was_asked(service):
    """In OpenAI's words."""
    service.jobs.train = replace(service.jobs.train, lr=4e-3)  # what jobs have otherwise; training's own is half of it
    for asked, rate, told in (
            ({"learning_rate_multiplier": 1.0}, 4e-3, 1.0), ({}, 4e-3, 1.0), ({"lr": "auto"}, "auto", 1.0),
            ({"learning_rate_multiplier": "auto"}, 4e-3, 1.0), ({"learning_rate_multiplier": 3.0}, 12e-3, 3.0),
            ({"lr": 4e-3}, 4e-3, 2.0)):
        job = service.jobs.create("tiny", upload(service), hyperparameters={**asked, "steps": 1})
        assert job.config["lr"] == (rate if rate == "auto" else pytest.approx(rate))
        assert job_object(job)["hyperparameters"]["learning_rate_multiplier"] == pytest.approx(told)


def test_a_process_is_told_of_answers(service, workers):
    begin(service)
    process = workers.next()
    until(lambda: process.commands == ["free"])
    service.generate("lamp", max_tokens=2).text()
    until(lambda: process.commands == ["free", "busy", "free"])


def test_a_job_that_ends_while_the_batcher_stops_is_not_lost(tmp_path, workers):
    """Its adapter cannot be loaded then; the next start does it."""
    with open_service(tmp_path, start_process=workers) as service:
        job = begin(service)
        process = workers.next()
        service.batcher.stop()
        process.judge()
        until(lambda: "it is being stopped" in service.jobs.paused_reason)
        assert service.jobs.get(job.id).status == "running"
        assert list(service.adapters.folder.iterdir()) == []
    with open_service(tmp_path, start_process=workers) as service:
        succeeds(service, workers, job)


def test_a_daemon_that_stops_has_the_process_save(tmp_path, workers):
    """And continues with the job that was running before those that wait."""
    with open_service(tmp_path, start_process=workers) as service:
        first = begin(service)
        waiting = begin(service)
        process = workers.next()
    assert process.commands[-1] == "stop"
    with open_service(tmp_path, start_process=workers) as service:
        assert service.jobs.get(first.id).status == "running"
        for job in (first, waiting):
            process = workers.next()
            assert process.folder.name == job.id
            process.judge()
            service.jobs.wait(job.id, 30)
        assert "resumed" in said(service, first)
    with open_service(tmp_path, start_process=workers) as service:
        done = succeeds(service, workers, begin(service))
    for name in (done.id, "ftjob-1.55.tmp", "ftjob-2"):
        (tmp_path / "state" / "runs" / name / "run").mkdir(parents=True)
    with open_service(tmp_path, start_process=workers) as service:
        assert list(service.jobs.folder.iterdir()) == []
        assert service.jobs.get(done.id) == done


def test_a_disk_that_is_full_or_refuses_a_process_stops_training_not_answers(service, workers, monkeypatch):
    monkeypatch.setattr(work, "ROOM", shutil.disk_usage("/").total * 2**20)
    job = begin(service)
    until(lambda: service.jobs.paused_reason)
    health = service.health()
    assert health["status"] == "degraded"
    assert "iB free" in health["reasons"][0]
    assert answers(service)
    assert service.jobs.get(job.id).status == "queued"
    monkeypatch.setattr(work, "ROOM", 0)
    succeeds(service, workers, job)
    assert service.health() == {"status": "ok", "reasons": []}
    job = begin(service)
    workers.next().fail("DiskError", "cannot write", disk=True)
    until(lambda: service.jobs.paused_reason)
    assert "cannot write" in service.health()["reasons"][0]
    assert service.jobs.get(job.id).status == "running"
    succeeds(service, workers, job)
    assert not service.jobs.paused_reason
