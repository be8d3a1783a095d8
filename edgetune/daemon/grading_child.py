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
from functools import partial
from typing import Any, TextIO

from ..errors import told
from ..evaluation.graders.base import read_grader
from ..evaluation.graders.sample import Sample
from ..evaluation.graders.sandbox import limit_processes
from ..python_child import begin_replies, limit_memory, reply

NICE = 19  # answers come first


@dataclass(frozen=True)
class _Asking:
    """A ScoreModel that asks the parent."""

    name: str
    out: TextIO

    def label_probabilities(self, conversations: Sequence[Sequence[Mapping[str, Any]]],
                            labels: Sequence[str]) -> list[list[float] | None]:
        reply(self.out, {"conversations": conversations, "labels": labels})
        found: list[list[float] | None] = json.loads(sys.stdin.readline())["probabilities"]
        return found


def main() -> None:
    task, out = begin_replies()
    os.nice(NICE)
    limit_memory(0, task["memory"])
    limit_processes(task["memory"])
    reply(out, told(partial(_grade, task, out)))


def _grade(task: Mapping[str, Any], out: TextIO) -> dict[str, Any]:
    try:
        grader = read_grader(task["grader"], model=_Asking(task["name"], out), allow_python=task["allow_python"])
        began = time.monotonic()
        grade, = grader.grade([Sample(task["sample"])], [task["item"]])
    except MemoryError:
        return {"reward": 0.0, "parts": {}, "errors": {"other_error": True}, "seconds": 0.0}
    return {"reward": grade.reward, "parts": dict(grade.parts), "errors": dict(grade.errors),
            "seconds": time.monotonic() - began}
