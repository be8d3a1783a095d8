"""Requests that wait, and one thread that answers them with a model which nobody else uses meanwhile.

What is computed together is decided by a subclass: batcher.py for a model that writes text, encoder_model.py for an
encoder. `submit`, adapters that come and go, and completions are for any thread.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ..errors import Interrupted, TooMuchError, UsageError
from .completion import Completion
from .served import Served

TOTALS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")


class InProgress(Protocol):
    """A request that waits or is worked on."""

    @property
    def completion(self) -> Completion: ...


A = TypeVar("A", bound=InProgress)


class Answering(ABC, Generic[A]):
    """Answers up to `parallel` requests together; `queue` more may wait. It has `served` to itself from start to stop.

    `on_busy`, if set, is called on its thread with whether somebody is being answered, when that changes; it must not
    raise.
    """

    def __init__(self, served: Served, parallel: int, queue: int) -> None:
        self.served = served
        self.parallel = parallel
        self.queue = queue
        self.on_busy: Callable[[bool], None] | None = None
        self.idle_since = time.monotonic()  # meaningful while nobody is answered
        self._totals = dict.fromkeys(TOTALS, 0)
        self._wake = threading.Condition(threading.RLock())  # held to change the attributes below
        self._open = False  # whether it takes requests
        self._now = False  # whether it cancels those that it took
        self._waiting: deque[A] = deque()
        self._gathering = threading.local()  # .answers: those that a thread submits together
        self._calls: list[tuple[Callable[[], bool], Future[None]]] = []  # for the thread; False: not yet
        self._leaving: set[str] = set()  # adapters that take no new requests
        self._working: list[A] = []  # the thread's, in the order in which they began
        self._told = False  # the last argument of on_busy
        self.thread = threading.Thread(target=self._loop, name="batcher", daemon=True)

    # ---- for any thread -----------------------------------------------------------------------------------------

    @abstractmethod
    def submit(self, prompt: str | Sequence[int], *, adapter: str | None = None, **options: Any) -> Completion:
        """Answers a prompt with an adapter that is loaded; None: with the base alone. Raises TooMuchError if the queue
        is full.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Counts since the start, and the current state."""

    def start(self) -> None:
        self._open = True
        self.thread.start()

    def stop(self, now: bool = False) -> None:
        """Take no more requests and return when those taken are answered; now: cancel them."""
        with self._wake:
            self._open = False
            self._now = self._now or now
            self._wake.notify()
        if self.thread.ident:
            self.thread.join()

    def threads(self) -> Sequence[threading.Thread]:
        return [self.thread]

    def reasons(self) -> Sequence[str]:
        """Always empty: it answers as long as its thread lives."""
        return ()

    def break_off(self) -> None:
        """Cancel all answers in progress and all that wait; others may come."""
        with self._wake:
            for answer in (*self._working, *self._waiting):
                answer.completion.cancelled = True
            self._wake.notify()

    @property
    def busy(self) -> bool:
        """Whether somebody is being answered or waits, or other work is done between decodes."""
        return bool(self._waiting or self._working or self._calls)

    def load(self, name: str, path: Path) -> None:
        """Loads a further adapter between two decodes; returns when it is loaded. Errors: those of `served`."""
        def load() -> bool:
            self.served.load_adapter(path, name)
            return True

        self._call(load)

    def unload(self, name: str) -> None:
        """Take no more requests for an adapter, and free it after its last answer; returns when that is done."""
        def unload() -> bool:
            if any(answer.completion.adapter == name for answer in (*self._working, *self._waiting)):
                return False
            self._leaving.discard(name)
            self._forget(name)
            self.served.unload(name)
            return True

        with self._wake:
            self.served.check_adapter(name)
            self._leaving.add(name)
        self._call(unload)

    def between(self, step: Callable[[], bool]) -> None:
        """Have a step of other work done after each decode until one returns True; returns then, with its error raised.

        Raises Interrupted where it stops.
        """
        self._call(step)

    def _take_in(self, answer: A) -> Completion:
        """Lets a request wait. Raises errors for an adapter that is not here, and TooMuchError."""
        adapter = answer.completion.adapter
        with self._wake:
            self._check_open()
            self.served.check_adapter(adapter)
            if adapter in self._leaving:
                raise UsageError(f"the adapter {adapter!r} is being removed", "choose another one")
            gathered = getattr(self._gathering, "answers", None)
            if len(self._waiting) + len(self._working) + len(gathered or ()) >= self.queue + self.parallel:
                raise TooMuchError(f"{self.queue} requests wait already", "ask again in a few seconds")
            (self._waiting if gathered is None else gathered).append(answer)
            self._totals["requests"] += 1
            self._wake.notify()
        return answer.completion

    @contextmanager
    def together(self) -> Iterator[None]:
        """Lets the requests that this thread submits within wait from its end on, so that they can be worked on
        together. One whose adapter left meanwhile has that error.
        """
        gathered: list[A] = []
        self._gathering.answers = gathered
        try:
            yield
        finally:
            self._gathering.answers = None
            with self._wake:
                self._waiting.extend(gathered)
                for answer in gathered:
                    try:
                        self.served.check_adapter(answer.completion.adapter)
                    except UsageError as error:
                        answer.completion.error = error
                        self._end(answer, "error")
                self._wake.notify()

    def _check_open(self) -> None:
        if not self._open:
            raise Interrupted("the model takes no requests: it is being stopped", "ask again when it is back")

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _call(self, work: Callable[[], bool]) -> None:
        """Have the thread do something, and wait for it."""
        done: Future[None] = Future()
        with self._wake:
            self._check_open()
            self._calls.append((work, done))
            self._wake.notify()
        done.result()

    # ---- the thread ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _admit(self) -> None:
        """Begins answers that wait, as many as can be worked on together."""

    @abstractmethod
    def _step(self) -> None:
        """Works on answers that have begun."""

    def _forget(self, name: str) -> None:
        """Drops what is kept for an adapter that leaves."""

    def _reset(self) -> None:
        """Drops all that is kept, after an error."""

    def _end(self, answer: A, finish: str, piece: str = "") -> None:
        (self._working if answer in self._working else self._waiting).remove(answer)
        answer.completion.end(finish, piece)

    def _loop(self) -> None:
        while self._prepare():
            try:
                self._step()
            except Exception as error:  # the engine's or our own: whoever waits gets it
                self._reset()
                for answer in self._working.copy():
                    answer.completion.error = error
                    self._end(answer, "error")

    def _prepare(self) -> bool:
        """Do requested work between decodes, and wait until somebody is to be answered; False: nobody will be."""
        while True:
            self._run_calls()
            with self._wake:
                for answer in (*self._working, *self._waiting):
                    if answer.completion.cancelled or self._now:
                        self._end(answer, "cancelled")
                self._admit()
            self._tell(bool(self._working or self._calls))
            if self._working:
                return True
            with self._wake:
                if not self._open and not self._waiting and not self._calls:
                    return False
                while self._open and not self._waiting and not self._calls:
                    self._wake.wait()

    def _run_calls(self) -> None:
        for call in self._calls.copy():
            work, done = call
            try:
                if work():
                    self._calls.remove(call)
                    done.set_result(None)
            except Exception as error:  # raised for the caller of the work
                self._calls.remove(call)
                done.set_exception(error)

    def _tell(self, busy: bool) -> None:
        if busy == self._told:
            return
        self._told = busy
        if not busy:
            self.idle_since = time.monotonic()
        if self.on_busy:
            self.on_busy(busy)
