"""A teacher's answers to prompts, of which those are kept that a grader finds right: rows to learn.

What is known so far is in a journal next to the rows, a JSON line a prompt, so that the same command continues after a
stop. Its first line is the digest of prompts and options.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from ..data.around import unlearned
from ..data.question import asked_messages, digest
from ..disk import cannot_write, json_lines, json_text, replaced
from ..errors import Interrupted, UsageError
from .graders.base import Grade
from .graders.sample import Sample

Row = Mapping[str, Any]
Ask = Callable[[Row, int], Sample]  # a row and the number of its answer; may raise Refused
Entry = tuple[int, dict[str, Any]]  # a prompt's number, and what became of it: {"row": None or a row, "counts": {...}}
AHEAD = 2  # prompts that are asked before they are graded, for each thread


class RefusedByTeacher(Exception):
    """A question that a teacher refuses, and will refuse again."""


class AnswerJudge(Protocol):
    """A grader, or a reward function."""

    @property
    def passes_at(self) -> float: ...

    def grade(self, samples: Sequence[Sample], items: Sequence[Row]) -> list[Grade]: ...


@dataclass(frozen=True)
class PromptCounts:
    """Numbers of prompts: kept with a right answer, wrong without one, refused; answers: that were graded;
    cut: of these, those that ended at the limit of tokens, which are never right.
    """

    prompts: int = 0
    kept: int = 0
    wrong: int = 0
    refused: int = 0
    answers: int = 0
    cut: int = 0

    def plus(self, other: PromptCounts) -> PromptCounts:
        return PromptCounts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


def journal_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.part")


def collect(rows: Sequence[Row], ask: Ask, judge: AnswerJudge, out: Path, *, samples: int = 1, threads: int = 4,
            options: Mapping[str, Any] | None = None, on_progress: Callable[[str, int, int], None] = lambda *_: None,
            should_stop: Callable[[], bool] = lambda: False) -> PromptCounts:
    """Writes the first right answer to each prompt, of `samples`, into the new file `out`.

    options: what else decides the answers, as JSON. Raises Interrupted once should_stop returns True, UsageError for a
    journal of another command, DiskError, and the errors of `ask` and of the grader; then the same call continues.
    """
    def answered(left: Sequence[int], pool: ThreadPoolExecutor, look: Callable[[], None]) -> Iterator[Entry]:
        def asking(row: Row, turn: int) -> Sample:
            look()
            return ask(row, turn)

        return _answered(rows, left, asking, judge, samples, threads, pool)

    return journalled(out, digest([[*rows], samples, options]), len(rows), answered, threads, on_progress, should_stop)


def journalled(out: Path, of_command: str, count: int,
               answered: Callable[[Sequence[int], ThreadPoolExecutor, Callable[[], None]], Iterator[Entry]],
               threads: int = 4, on_progress: Callable[[str, int, int], None] = lambda *_: None,
               should_stop: Callable[[], bool] = lambda: False) -> PromptCounts:
    """Writes the rows that prompts came to into the new file `out`, next to a journal. of_command: the digest of
    prompts and options. count: of the prompts. answered: from the numbers that are left, a pool, and what is to be
    called before each is asked, to what became of each.

    Raises what `answered` raises, Interrupted once should_stop returns True, UsageError for a journal of another
    command, and DiskError; the same call continues.
    """
    def look() -> None:
        if should_stop():
            raise Interrupted(f"stopped after {len(found)} of {count} prompts", "the same command continues")

    journal = journal_of(out)
    found = _journal(journal, of_command)
    on_progress("answers", len(found), count)
    with journal.open("ab", buffering=0) as file, ThreadPoolExecutor(threads) as pool:
        try:
            for number, entry in answered([number for number in range(count) if number not in found], pool, look):
                found[number] = entry
                _append(file, json_text({"number": number, **entry}) + "\n")
                on_progress("answers", len(found), count)
        finally:
            pool.shutdown(cancel_futures=True)
    with replaced(out) as beside:
        beside.write_text(json_lines(found[number]["row"] for number in sorted(found) if found[number]["row"]),
                          encoding="utf-8")
    journal.unlink()
    return sum_of(found.values())


def sum_of(entries: Any) -> PromptCounts:
    total = PromptCounts()
    for entry in entries:
        total = total.plus(PromptCounts(**entry["counts"]))
    return total


def _append(file: FileIO, line: str) -> None:
    """Raises DiskError."""
    left = line.encode()
    try:
        while left:
            left = left[file.write(left):]
    except OSError as error:
        raise cannot_write(Path(str(file.name)), error) from None


def _journal(path: Path, of_command: str) -> dict[int, dict[str, Any]]:
    """What is known: of each prompt its counts and its row, None without a right answer."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]  # the last one may have been cut by a kill
    if not whole:
        with replaced(path) as beside:
            beside.write_text(json.dumps({"digest": of_command}) + "\n")
        return {}
    try:
        entries = [json.loads(line) for line in whole]
        was = entries[0]["digest"]
        found = {int(entry["number"]): {"row": entry["row"], "counts": entry["counts"]} for entry in entries[1:]}
    except (ValueError, KeyError, IndexError, TypeError):
        was, found = None, {}
    if was != of_command:
        raise UsageError(f"{path} was begun with other prompts or options", "give those again, or remove it")
    if len(whole) < len(lines):
        with replaced(path) as beside:
            beside.write_bytes(b"".join(whole))
    return found


def _answered(rows: Sequence[Row], left: Sequence[int], ask: Ask, judge: AnswerJudge, samples: int, threads: int,
              pool: ThreadPoolExecutor) -> Iterator[tuple[int, dict[str, Any]]]:
    """Prompts with what became of them. A round asks one answer to each that has no right one yet."""
    waiting = iter(left)
    while numbers := list(islice(waiting, AHEAD * threads)):
        counts = dict.fromkeys(numbers, PromptCounts(prompts=1))
        right: dict[int, Any] = {}
        for turn in range(samples):
            asked = [number for number in numbers if number not in right and not counts[number].refused]
            replies = list(pool.map(lambda number, turn=turn: _try(ask, rows[number], turn), asked))
            given = {number: reply for number, reply in zip(asked, replies, strict=True) if reply}
            graded = judge.grade([*given.values()], [rows[number] for number in given])
            grades = dict(zip(given, graded, strict=True))
            for number, reply in zip(asked, replies, strict=True):
                if not reply:
                    counts[number] = counts[number].plus(PromptCounts(refused=1))
                    continue
                is_cut = reply.finish_reason == "length"
                counts[number] = counts[number].plus(PromptCounts(answers=1, cut=int(is_cut)))
                grade = grades[number]
                if grade.applicable and grade.reward >= judge.passes_at and not is_cut:
                    right[number] = with_answer(rows[number], reply)
        for number in numbers:
            is_wrong = number not in right and not counts[number].refused
            ended = PromptCounts(kept=int(number in right), wrong=int(is_wrong))
            yield number, {"row": right.get(number), "counts": asdict(counts[number].plus(ended))}


def _try(ask: Ask, row: Row, turn: int) -> Sample | None:
    try:
        return ask(row, turn)
    except RefusedByTeacher:
        return None


def with_answer(row: Row, answer: Sample) -> dict[str, Any]:
    """The row to learn: its question with this answer, and nothing that was for the grader alone."""
    if isinstance(row.get("prompt"), str) and not answer.tool_calls:
        return {"prompt": row["prompt"], "completion": answer.text}
    said: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.tool_calls:
        said["tool_calls"] = [*answer.tool_calls]
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    return {"messages": [*unlearned(asked_messages(row)), said], **tools}
