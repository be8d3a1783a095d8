"""A python grader's process, from outside: started when it is needed, and again after each death."""

from __future__ import annotations

import json
import math
import os
import resource
import select
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ...errors import EdgetuneError
from ...python_child import child, how_it_ended

START_SECONDS = 60  # until the process is there; the grader's own first lines have its `timeout`
MOST_REPLY = 1 << 16  # bytes
KEPT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "TZ")  # of the environment; the rest may hold secrets
SET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",  # no other thread is allowed
       "HOME": "/"}  # nltk asks for one, and the table of users cannot be read
PROCESS_BYTES = 64 << 20  # of memory that a grader's process may have whatever is left
_ADDRESSES = 96 << 20  # bytes of address space of a Python process that are no memory

_limit: int | None = None  # bytes of address space of any grader's process


def limit_processes(nbytes: int) -> None:
    """Limits the memory of each process of a python grader that this process starts from now on."""
    global _limit
    _limit = max(nbytes, PROCESS_BYTES) + _ADDRESSES


@contextmanager
def limited_processes(nbytes: int) -> Iterator[None]:
    """Limits the memory of each process of a python grader that is started meanwhile. 0: no limit but the grader's."""
    global _limit
    before = _limit
    if nbytes:
        limit_processes(nbytes)
    try:
        yield
    finally:
        _limit = before


def share_of(left: int, nbytes: int) -> int:
    """Returns the memory that processes of python graders get of `left` bytes: the `nbytes` that they may take, but a
    quarter of what is left at most, and no less than PROCESS_BYTES.
    """
    return min(nbytes, max(PROCESS_BYTES, left // 4))


class CallFailed(Exception):
    """A call that gave no reward; the text says why."""


class SourceFailed(Exception):
    """The grader's source gave no function; the text says why."""


class _Ended(Exception):
    """The process did not answer: it is dead, too late, or broke the protocol."""


class GraderSandbox:
    """One process for many calls, from any thread, one at a time.

    timeout: seconds a call. memory: bytes of address space. unsafe: without the filter of system calls.
    """

    def __init__(self, source: str, timeout: float, memory: int, unsafe: bool) -> None:
        self._setup = {"source": source, "unsafe": unsafe}
        self._memory = memory
        self._timeout = timeout
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._calls = 0
        self._busy = 0.0  # seconds that the process has computed at most
        self._end: Any = None
        self._death = ""

    def start(self) -> None:
        """Raises SourceFailed, and EdgetuneError where there can be no such process."""
        with self._lock:
            self._running()

    def call(self, sample: dict[str, Any], item: dict[str, Any]) -> float:
        """A finite reward. Raises CallFailed, and EdgetuneError where there can be no such process."""
        with self._lock:
            for is_last in (False, True):
                try:
                    return self._call(self._running(), sample, item)
                except SourceFailed as error:
                    raise CallFailed(str(error)) from None
                except _Ended as error:
                    killed = self._stop() == -signal.SIGKILL
                    if is_last or not killed or error.args[0]:
                        raise CallFailed(error.args[0] or self._death) from None
                    # the thread that had started it has ended, and so the kernel ended the process: once again
        raise AssertionError("unreachable")

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        started = child("edgetune.evaluation.graders.sandboxed")
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment |= SET | {"PYTHONPATH": started["env"]["PYTHONPATH"]}
        process = subprocess.Popen(started["args"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, bufsize=0, start_new_session=True)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._process = process
        self._end = weakref.finalize(self, _kill, process)
        self._busy = 0.0
        self._begin(process)
        return process

    def _begin(self, process: subprocess.Popen[bytes]) -> None:
        try:
            setup = {**self._setup, "parent": os.getpid(), "memory": min(self._memory, _limit or self._memory)}
            reply = self._exchange(process, setup, START_SECONDS + self._timeout)
        except _Ended as error:
            self._stop()
            raise SourceFailed(error.args[0] or self._death) from None
        if "ready" in reply:
            return
        self._stop()
        if "refused" in reply:
            raise EdgetuneError(f"the kernel refuses a sandbox for python graders ({reply['refused']})",
                                "run them without with --unsafe-python, if you trust them")
        raise SourceFailed(str(reply.get("failed")))

    def _call(self, process: subprocess.Popen[bytes], sample: dict[str, Any], item: dict[str, Any]) -> float:
        self._calls += 1
        with suppress(OSError, ValueError):  # its CPU seconds, in case this process is stopped
            soft = math.ceil(START_SECONDS + self._busy + self._timeout)
            resource.prlimit(process.pid, resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
        reply = self._exchange(process, {"id": self._calls, "sample": sample, "item": item}, self._timeout)
        if "failed" in reply:
            if "MemoryError" in str(reply["failed"]):
                self._stop()  # what it holds would be missing in the next call
            raise CallFailed(str(reply["failed"]))
        reward = reply.get("reward")
        if reply.get("id") != self._calls or not isinstance(reward, float) or not math.isfinite(reward):
            raise _Ended("it writes to the pipe of its replies")
        return reward

    def _exchange(self, process: subprocess.Popen[bytes], message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """A line there, and the line that comes back. Raises _Ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        begun = time.monotonic()
        try:
            line = _line(process, json.dumps(message, default=str).encode() + b"\n", begun + seconds)
        except BaseException:  # Ctrl-C: the next call must not find this one's reply
            self._stop()
            raise
        self._busy += time.monotonic() - begun
        if line is None:
            raise _Ended(f"it took more than {seconds:g} s")
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            raise _Ended("it writes to the pipe of its replies" if line else "") from None
        if not isinstance(reply, dict):
            raise _Ended("it writes to the pipe of its replies")
        return reply

    def _stop(self) -> int | None:
        """End the process, if there is one; its exit code."""
        process = self._process
        self._process = None
        if process is None:
            return None
        ended = process.poll()
        if self._end is not None:
            self._end()
        self._death = f"the process ended with {how_it_ended(process.wait())}"
        return process.returncode if ended is None else ended


def _line(process: subprocess.Popen[bytes], sent: bytes, deadline: float) -> bytes | None:
    """Send bytes; the line that comes back, without its end. Empty where the process ends, None after the deadline."""
    assert process.stdin is not None
    assert process.stdout is not None
    left = memoryview(sent)
    received = bytearray()
    while not received.endswith(b"\n") and len(received) <= MOST_REPLY:
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            return None
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        if left:
            poll.register(process.stdin, select.POLLOUT)
        for descriptor, _ in poll.poll(math.ceil(1000 * seconds)):
            if descriptor == process.stdin.fileno():
                left = _sent(descriptor, left)
                continue
            part = os.read(descriptor, MOST_REPLY)
            if not part:
                return b""
            received += part
    return bytes(received[:-1]) or b"-"


def _sent(descriptor: int, left: memoryview) -> memoryview:
    """Sends some bytes, and returns those that are left."""
    try:
        return left[os.write(descriptor, left):]
    except BlockingIOError:
        return left
    except BrokenPipeError:
        return left[:0]  # it is dead, as the other pipe says


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
