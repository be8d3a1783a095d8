"""The process of one grader on one answer (grading.py). It reads a line of JSON with the task from stdin, and writes
one with the grade to stdout. Between them it may request probabilities of labels, a line each way.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from ..errors import EdgetuneError
from ..evaluation.graders.base import read_grader
from ..evaluation.graders.sample import Sample
from ..evaluation.graders.sandbox import limit_processes
from ..python_child import die_with, limit_memory

NICE = 19  # answers come first


@dataclass(frozen=True)
class _Asking:
    """A ScoreModel that asks the parent."""

    name: str
    out: TextIO

    def label_probabilities(self, conversations: Sequence[Sequence[Mapping[str, Any]]],
                            labels: Sequence[str]) -> list[list[float] | None]:
        _say(self.out, {"conversations": conversations, "labels": labels})
        found: list[list[float] | None] = json.loads(sys.stdin.readline())["probabilities"]
        return found


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # all other output is not a reply
    task = json.loads(sys.stdin.readline())
    die_with(task["parent"])
    os.nice(NICE)
    limit_memory(0, task["memory"])
    limit_processes(task["memory"])
    try:
        said = _grade(task, out)
    except EdgetuneError as error:
        said = {"error": type(error).__name__, "what": error.what, "hint": error.hint}
    except MemoryError:
        said = {"reward": 0.0, "parts": {}, "errors": {"other_error": True}, "seconds": 0.0}
    _say(out, said)


def _grade(task: Mapping[str, Any], out: TextIO) -> dict[str, Any]:
    grader = read_grader(task["grader"], model=_Asking(task["name"], out), allow_python=task["allow_python"])
    began = time.monotonic()
    grade, = grader.grade([Sample(task["sample"])], [task["item"]])
    return {"reward": grade.reward, "parts": dict(grade.parts), "errors": dict(grade.errors),
            "seconds": time.monotonic() - began}


def _say(out: TextIO, message: Mapping[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()
