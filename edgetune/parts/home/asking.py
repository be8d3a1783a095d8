"""A house asked the sentences of a file, and compared with the calls that are accepted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...disk import json_lines, replaced
from ...errors import DataError
from .own import read_sentences
from .tools import Call, same_calls
from .understanding import Understanding


@dataclass(frozen=True)
class AskedSentence:
    """A sentence and its calls. right: None where the file does not say which are accepted."""

    sentence: str
    calls: tuple[Call, ...]
    right: bool | None
    milliseconds: float


def read_asked(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, each with a `sentence`. Raises DataError for a file without rows, and for one whose
    `accepted` does not hold lists of calls.
    """
    rows = []
    for place, row in read_sentences(path):
        if (accepted := row.get("accepted")) is not None and not is_accepted(accepted):
            raise DataError(f"{place} accepts {accepted!r:.80}", 'write lists of calls, such as [[{"name": '
                            '"HassTurnOn", "arguments": {"name": "Lamp"}}]]')
        rows.append(row)
    if not rows:
        raise DataError(f"{path} has no sentences", 'write {"sentence": "turn on the lamp"} in each line')
    return rows


def is_accepted(found: Any) -> bool:
    """Whether a value is a list of lists of calls."""
    return isinstance(found, list) and all(isinstance(calls, list) for calls in found) and all(
        isinstance(call, Mapping) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), Mapping)
        for calls in found for call in calls)


def ask(understanding: Understanding, rows: Sequence[Mapping[str, Any]]) -> list[AskedSentence]:
    """The calls for each sentence."""
    found = []
    for row in rows:
        began = time.perf_counter()
        calls = understanding.understand(row["sentence"]).sure_calls
        spent = 1000 * (time.perf_counter() - began)
        accepted = row.get("accepted")
        right = None if accepted is None else same_calls(calls, accepted)
        found.append(AskedSentence(row["sentence"], tuple(calls), right, spent))
    return found


def save_answers(path: Path, answers: Sequence[AskedSentence]) -> None:
    """Writes a line for each, {"sentence", "calls"}: all or none. Raises DiskError."""
    rows = [{"sentence": one.sentence, "calls": [call.to_json() for call in one.calls]} for one in answers]
    with replaced(path) as beside:
        beside.write_text(json_lines(rows), encoding="utf-8")
