"""Graders of clients, tried on one answer in a separate process, because a pattern or a long text could occupy this one
for a long time. A grader that needs a model asks this process, which has the base.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import errors
from ..evaluation.graders.base import Grade, Grader, read_grader
from ..llamacpp.tokenizer import Tokenizer
from ..python_child import child
from ..serving.answering import Answering
from ..serving.labels import asked_tokens, label_tokens, relative
from . import grading_child
from .threads import Places

SECONDS = 60.0  # that a grader may take, including the start of its process
MOST = 8  # that wait for their turn
PROCESS_BYTES = 48 << 20  # of the process of a grader before it grades
LEAST_BYTES, MOST_BYTES = 64 << 20, 512 << 20  # that it may use in addition


@dataclass(frozen=True)
class Graded:
    """The grade of an answer, the seconds of the grading, and tokens that the base read and wrote for it, by OpenAI's
    names; none where it was not used.
    """

    grade: Grade
    seconds: float
    usage: Mapping[str, int]


@dataclass(frozen=True)
class Judge:
    """A ScoreModel: the base that answers, without adapters, which must not grade their own answers."""

    batcher: Answering[Any]
    name: str
    usage: dict[str, int] = field(default_factory=dict)

    def label_probabilities(self, conversations: Sequence[Sequence[Mapping[str, Any]]],
                            labels: Sequence[str]) -> list[list[float] | None]:
        """Raises UnsupportedError for a model whose tokens do not distinguish the labels, and errors of a request."""
        among = label_tokens(self._tokenizer, labels, self.name)
        return [self._probabilities(conversation, among) for conversation in conversations]

    @property
    def _tokenizer(self) -> Tokenizer:
        found = self.batcher.served.tokenizer
        if not isinstance(found, Tokenizer):
            raise errors.UnsupportedError(f"{self.name} is an encoder, which scores no answers",
                                          "use a grader without a model")
        return found

    def _probabilities(self, conversation: Sequence[Mapping[str, Any]], among: list[int]) -> list[float] | None:
        prompt = asked_tokens(self._tokenizer, conversation)
        if len(prompt) >= self.batcher.served.context:
            return None
        said = self.batcher.submit(prompt, max_tokens=1, among=among, seed=0)
        said.text()
        for name, tokens in (("prompt_tokens", said.prompt_tokens), ("completion_tokens", 1),
                             ("total_tokens", said.prompt_tokens + 1), ("cached_tokens", said.cached_tokens)):
            self.usage[name] = self.usage.get(name, 0) + tokens
        return relative(said.among)


class Grading:
    """Runs graders for any number of threads, one at a time. name: of the base. allow_python: whether python graders
    may run. left: bytes that the daemon may still use.
    """

    def __init__(self, batcher: Answering[Any], name: str, allow_python: bool, left: Callable[[], int]) -> None:
        self.batcher = batcher
        self.name = name
        self.allow_python = allow_python
        self._left = left
        self.places = Places(MOST, "graders")
        self._turn = threading.Lock()

    def read(self, written: Mapping[str, Any]) -> Grader:
        """Reads a grader. Raises UsageError for errors in it, and for one in Python where that may not run."""
        return read_grader(written, model=Judge(self.batcher, self.name), allow_python=self.allow_python)

    def run(self, written: Mapping[str, Any], text: str, item: Mapping[str, Any]) -> Graded:
        """Returns the grade of an answer to a row. One that takes longer than SECONDS is an unresponsive_reward_error.

        Raises errors of `read`, DataError for a row without a prompt where the grader needs one, and TooMuchError.
        """
        self.read(written)
        judge = Judge(self.batcher, self.name)
        memory = min(max(self._left() - PROCESS_BYTES, LEAST_BYTES), MOST_BYTES)
        task = {"grader": written, "sample": text, "item": item, "name": self.name, "allow_python": self.allow_python,
                "memory": memory, "parent": os.getpid()}
        with self.places.taken(), self._turn:
            said = _graded(task, judge)
        return Graded(Grade(said["reward"], said["parts"], said["errors"]), said["seconds"], judge.usage)


class _GraderEnded(Exception):
    """The process has ended or does not answer."""


def _graded(task: Mapping[str, Any], judge: Judge) -> dict[str, Any]:
    late = threading.Event()
    with subprocess.Popen(**child(grading_child.__name__), text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        def end() -> None:
            late.set()
            process.kill()

        killer = threading.Timer(SECONDS, end)
        killer.start()
        try:
            return _conversation(process, task, judge)
        except _GraderEnded:
            name = "unresponsive_reward_error" if late.is_set() else "other_error"
            return {"reward": 0.0, "parts": {}, "errors": {name: True}, "seconds": SECONDS if late.is_set() else 0.0}
        finally:
            killer.cancel()
            process.kill()


def _conversation(process: subprocess.Popen[str], task: Mapping[str, Any], judge: Judge) -> dict[str, Any]:
    """Answers the requests of the process to the base until it is done. Raises _GraderEnded where it ends before, its
    errors, and those of the base.
    """
    message: Mapping[str, Any] = task
    while True:
        reply = _exchange(process, message)
        if "conversations" not in reply:
            found: dict[str, Any] = errors.found_in(reply)
            return found
        message = {"probabilities": judge.label_probabilities(reply["conversations"], reply["labels"])}


def _exchange(process: subprocess.Popen[str], message: Mapping[str, Any]) -> dict[str, Any]:
    assert process.stdin
    assert process.stdout
    line = json.dumps(message) + "\n"
    try:
        process.stdin.write(line)
        process.stdin.flush()
        found: dict[str, Any] = json.loads(process.stdout.readline())
    except (BrokenPipeError, ValueError, RecursionError):
        raise _GraderEnded from None
    return found
