"""A house asked the sentences of a file, and compared with the calls that are accepted."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .answering import Understanding
from .tools import Call, same_calls


@dataclass(frozen=True)
class Asked:
    """A sentence and its calls. right: None where the file does not say which are accepted."""

    sentence: str
    calls: tuple[Call, ...]
    right: bool | None
    milliseconds: float


def ask(understanding: Understanding, rows: Sequence[Mapping[str, Any]]) -> list[Asked]:
    """The calls for each sentence."""
    found = []
    for row in rows:
        began = time.perf_counter()
        calls = understanding.understand(row["sentence"]).sure_calls
        spent = 1000 * (time.perf_counter() - began)
        accepted = row.get("accepted")
        right = None if accepted is None else same_calls(calls, accepted)
        found.append(Asked(row["sentence"], tuple(calls), right, spent))
    return found


def save_answers(path: Path, answers: Sequence[Asked]) -> None:
    """A line for each: {"sentence", "calls"}."""
    lines = [json.dumps({"sentence": one.sentence, "calls": [call.to_json() for call in one.calls]},
                        ensure_ascii=False) for one in answers]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def median_milliseconds(answers: Sequence[Asked]) -> float:
    return statistics.median(one.milliseconds for one in answers)
