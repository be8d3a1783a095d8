"""A job's process seen from its parent, with small processes in place of worker.py."""

import errno
import subprocess
import threading
import time

import pytest

from edgetune.daemon.jobs import process as processes
from edgetune.daemon.jobs.process import SilentError, WorkerProcess
from edgetune.errors import TooMuchError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the module that a process runs."""
    def write(body):
        (tmp_path / "toy_worker.py").write_text(f"import sys, time\ndef main():\n    {body}\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return write


def test_commands_are_not_held_up_by_a_task_that_is_not_read(write):
    write("time.sleep(1.0); task = sys.stdin.readline(); said = sys.stdin.readline().strip();"
          """ print('{"event": "%s", "tokens": %d}' % (said, len(task)), flush=True)""")
    process = WorkerProcess("toy_worker")
    begun = threading.Thread(target=process.begin, args=({"task": "x" * 300_000},))
    begun.start()
    process.send("busy")
    assert begun.is_alive(), "it was sent only when the task had been read"
    begun.join()
    event, = process.events()
    assert event["event"] == "busy"
    assert event["tokens"] > 300_000
    assert process.wait() == 0


def test_a_silent_process_hangs_and_one_with_a_sign_of_life_does_not(write, monkeypatch):
    monkeypatch.setattr(processes, "SILENT_SECONDS", 1.0)
    write("""[(print('{"event": "alive"}', flush=True), time.sleep(0.4)) for _ in range(5)]; time.sleep(60)""")
    process = WorkerProcess("toy_worker")
    process.begin({})
    started = time.monotonic()
    with pytest.raises(SilentError):
        list(process.events())
    assert time.monotonic() - started > 2.0
    process.kill()
    assert process.wait() == -9


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EAGAIN, errno.EMFILE])
def test_no_room_for_a_process_is_no_fault_of_the_job(monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, "no room")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(TooMuchError, match="no room"):
        WorkerProcess()
