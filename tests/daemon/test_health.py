"""The daemon's health: it is ok only if every thread lives and all that waits goes on."""

import sqlite3
import threading

import httpx
import pytest
from daemons import PATIENCE, daemon
from services import open_service, until
from tiny import write_tiny

from edgetune.daemon import threads
from edgetune.daemon.state import database
from edgetune.daemon.threads import Background, health_of


def test_health_knows_every_thread_of_a_service(tmp_path):
    """Those of the daemon itself; a part's test has its threads."""
    write_tiny(tmp_path / "tiny.gguf", formats="Q8_0")
    before = set(threading.enumerate())
    with open_service(tmp_path, learn="idle") as service:
        begun = {thread for thread in threading.enumerate() if thread not in before}
        known = {thread for part in service.parts for thread in part.threads() if thread.ident}
        assert begun == known
        assert {thread.name for thread in known} == {"batcher", "jobs", "learn"}
        assert service.health() == {"status": "ok", "reasons": []}


def test_a_database_that_another_program_holds_is_said_soon(tiny_q8, tmp_path, monkeypatch):
    assert database.LOCK_SECONDS <= 5
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.2)
    given = {"prompt": "lamp", "answer": "off", "correction": "on"}
    with daemon(tiny_q8, tmp_path / "state") as running, httpx.Client(base_url=running.url, timeout=PATIENCE) as http:
        other = sqlite3.connect(tmp_path / "state" / database.NAME, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        refused = http.post("/v1/feedback", json=given)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert (refused.json()["error"]["type"], refused.json()["error"]["code"]) == ("server_error", "locked")
        assert "another program holds" in refused.json()["error"]["message"]
        health = http.get("/healthz").json()
        assert health["status"] == "degraded"
        assert "another program holds" in health["reasons"][0]
        other.close()
        assert http.get("/healthz").json() == {"status": "ok", "reasons": []}
        assert http.post("/v1/feedback", json=given).status_code == 200
        assert running.service.feedback.counts()["new"] + running.service.feedback.counts()["held"] == 1


class Failing:
    """A part whose work fails as often as it is told."""

    def __init__(self, error, times):
        self.left = [error] * times
        self.done = threading.Event()
        self.stopping = threading.Event()
        self.thread = Background("toy", self.work, self.stopping, "count")

    def work(self):
        if self.left:
            raise self.left.pop()
        self.done.set()
        self.stopping.wait()

    def threads(self):
        return [self.thread]

    def reasons(self):
        return [self.thread.failure] if self.thread.failure else []


def test_a_thread_outlives_any_error_and_says_it_meanwhile(monkeypatch, caplog):
    part = Failing(ZeroDivisionError("a bug"), 1)
    part.thread.start()
    [reason] = until(lambda: health_of([part]))
    assert reason == "the daemon does not count now: ZeroDivisionError: a bug"
    assert "Traceback" in caplog.text
    assert part.thread.is_alive()
    part.thread.stop()
    monkeypatch.setattr(threads, "RETRY_SECONDS", 0.01)
    part = Failing(ZeroDivisionError("a bug"), 3)
    part.thread.start()
    assert part.done.wait(30)
    part.thread.stop()
    assert part.left == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_named():
    """As of an exit, which no handler of errors sees."""
    part = Failing(SystemExit(), 1)
    part.thread.start()
    part.thread.join()
    [reason] = health_of([part])
    assert "the thread toy has died" in reason
    assert health_of([Failing(SystemExit(), 1)]) == []  # it was not started
