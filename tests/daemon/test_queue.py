"""The states of jobs in the queue, with processes that do what a test tells them."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_workers import FakeWorkers
from services import SMALL, open_service, until, upload

from edgetune.daemon.jobs import queue as work
from edgetune.daemon.jobs.jobs import Job
from edgetune.daemon.jobs.process import SilentError
from edgetune.daemon.service import Service
from edgetune.errors import TooMuchError


@pytest.fixture
def service(tmp_path: Path, workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(work, "RETRY_SECONDS", 0.05)
    with open_service(tmp_path, start_process=workers) as service:
        yield service


def begin(service: Service) -> Job:
    return service.jobs.create(service.name, upload(service), hyperparameters=SMALL)


def said(service: Service, job: Job) -> list[str]:
    return [event["message"] for event in service.jobs.events(job.id, limit=100)]


def test_the_thread_outlives_a_folder_that_is_out_of_reach(service: Service, workers: FakeWorkers) -> None:
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
        for job in (workers_job, waiting):
            workers.next().judge()
            assert service.jobs.wait(job.id, 30).status == "succeeded"
    assert service.health()["status"] == "ok"


def test_the_thread_outlives_any_error(service: Service, workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        patched.setattr(service.jobs.table, "next", broken)
        job = begin(service)
        until(lambda: "a bug" in service.jobs.paused_reason)
    workers.next().judge()
    assert service.jobs.wait(job.id, 30).status == "succeeded"


def test_health_names_a_thread_that_died(service: Service) -> None:
    assert service.health()["status"] == "ok"
    died = threading.Thread(target=lambda: None, name="learn")
    died.start()
    died.join()
    service.learner.thread = died
    health = service.health()
    assert health["status"] == "degraded"
    assert "learn" in health["reasons"][0]


def test_where_no_process_can_start_the_job_waits(service: Service, workers: FakeWorkers) -> None:
    workers.errors = [TooMuchError("no process can be started: Cannot allocate memory"), OSError(errno.EMFILE, "files")]
    job = begin(service)
    until(lambda: service.jobs.paused_reason)
    workers.next().judge()
    assert service.jobs.wait(job.id, 30).status == "succeeded"


def test_a_process_that_hangs_fails_its_job_and_the_next_one_begins(service: Service, workers: FakeWorkers) -> None:
    hangs = begin(service)
    after = begin(service)
    process = workers.next()
    process.emit(SilentError("the training process did nothing for 6 hours"))
    job = service.jobs.wait(hangs.id, 30)
    assert job.error
    assert "6 hours" in job.error["message"]
    assert "kill" in process.commands
    workers.next().judge()
    assert service.jobs.wait(after.id, 30).status == "succeeded"


def test_work_that_does_not_fit_now_is_kept(service: Service, workers: FakeWorkers) -> None:
    """The job is paused, and continues where it was when a person resumes it."""
    job = begin(service)
    process = workers.next()
    process.train()
    process.fail("UsageError", "this does not fit: 100 MiB", resumable=True)
    until(lambda: service.jobs.get(job.id).status == "paused")
    assert (process.folder / "run").exists()
    assert any("100 MiB" in text for text in said(service, job))
    service.jobs.resume(job.id)
    again = workers.next()
    assert again.folder == process.folder
    assert (again.folder / "run").exists()
    again.judge()
    assert service.jobs.wait(job.id, 30).status == "succeeded"


def adapter(service: Service, workers: FakeWorkers) -> str:
    """One that was activated."""
    job = begin(service)
    workers.next().judge()
    return str(service.jobs.wait(job.id, 30).result)


@pytest.mark.parametrize("deletes", [False, True])
def test_a_roll_back_while_a_job_trains_is_not_overruled(service: Service, workers: FakeWorkers, deletes: bool) -> None:
    """It is compared with what is active at the end, also where the other adapter was deleted meanwhile."""
    first = adapter(service, workers)
    job = begin(service)
    process = workers.next()
    process.step()
    assert service.adapters.rollback("a person's word") is None
    if deletes:
        service.adapters.delete(first)
    process.judge()
    again = workers.next()
    assert again.task["serving"] is None
    again.judge(False)
    job = service.jobs.wait(job.id, 30)
    assert service.adapters.get(str(job.result)).verdict["against"] is None
    assert sum("judged again" in text for text in said(service, job)) == 1


@pytest.mark.parametrize("deletes", [False, True])
def test_a_failure_to_compare_with_an_adapter_that_is_gone_is_none(service: Service, workers: FakeWorkers,
                                                                   deletes: bool) -> None:
    first = adapter(service, workers)
    job = begin(service)
    process = workers.next()
    process.train()
    service.adapters.rollback("a person's word")
    if deletes:
        service.adapters.delete(first)
    process.fail("FormatError", "there is no adapter")
    workers.next().judge()
    assert service.jobs.wait(job.id, 30).status == "succeeded"


@pytest.mark.parametrize("changes", [1, 9])
def test_a_word_at_the_last_moment_is_not_overruled(service: Service, workers: FakeWorkers, changes: int,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """The active adapter changes after the verdict, while the new one is loaded: it is judged again, not for ever."""
    first = adapter(service, workers)
    load = service.batcher.load
    left = changes

    def load_and_change(name: str, path: Path) -> None:
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
    assert sum("judged again" in text for text in said(service, job)) == min(changes, work.REJUDGED)
    made = service.adapters.get(str(job.result))
    assert len(service.adapters.list()) == 2
    assert made.state == ("serving" if changes == 1 else "candidate")
    assert any(f"changed {work.REJUDGED + 1} times" in text for text in said(service, job)) == (changes > 1)


def test_one_jobs_deaths_are_not_another_ones(service: Service, workers: FakeWorkers) -> None:
    first = begin(service)
    second = begin(service)
    for _ in range(work.DEATHS - 1):
        workers.next().end(code=-9)
    until(lambda: sum("signal 9" in text for text in said(service, first)) == work.DEATHS - 1)
    service.jobs.cancel(first.id)
    workers.next().end(code=-9)
    running = workers.next()
    while running.folder.name == first.id:
        running = workers.next()
    if running.folder.name == second.id:
        running.judge()
    assert service.jobs.wait(second.id, 30).status == "succeeded"


def test_steps_between_deaths_are_work(service: Service, workers: FakeWorkers) -> None:
    job = begin(service)
    for number in range(2 * work.DEATHS):
        process = workers.next()
        process.step(1)
        process.end(code=-9)
        until(lambda number=number: sum("signal 9" in text for text in said(service, job)) == number + 1)
    for _ in range(work.DEATHS - 1):
        workers.next().end(code=-9)
    job = service.jobs.wait(job.id, 30)
    assert job.error
    assert job.error["code"] == "died"


def test_jobs_can_be_steered_while_a_process_does_not_read_its_task(service: Service, workers: FakeWorkers,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    reads = threading.Event()
    begun = threading.Event()

    class Slow(type(workers())):  # type: ignore[misc]
        def begin(self, task: dict[str, object]) -> None:
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


def test_a_job_is_told_how_many_adapters_were_refused_since_one_passed(service: Service, workers: FakeWorkers) -> None:
    """Each verdict has its number; those of edgetune 0.1.0 have none, and a job that evaluated nothing neither."""
    asked = []
    for passed, facts in ((False, {"test": 1}), (False, {"test": 2}), (False, {}), (True, {"test": 3}), (True, {})):
        job = begin(service)
        worker = workers.next()
        asked.append(worker.task["tests_before"])
        worker.judge(passed, **facts)
        service.jobs.wait(job.id, 30)
    assert asked == [0, 1, 2, 2, 0]
