"""Rows from a log of answers: only those that somebody confirmed, and whose calls today's tools still take.

A record is one of these, with a key that says whether the answer was confirmed:

    {"messages": [..., {"role": "assistant", ...}], "tools": [...], "confirmed": true}
    {"prompt": "...", "completion": "...", "rating": "up"}
    {"request": {"messages": [...], "tools": [...]}, "response": {"choices": [{"message": {...}}]}, "confirmed": true}

What nobody confirmed is dropped: learning a model's unchecked answers keeps its mistakes. So is a call of a tool that
was renamed or takes other arguments now, because it would teach calls that nothing answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...data import rows as supervised
from ...data.calls import CallError, check_calls
from ...data.files import place, read_rows
from ...data.formats import recognised
from ...data.question import canonical, question_digest
from ...disk import MIB, read_small
from ...errors import DataError
from ...options import check_options
from .options import LogOptions
from .output import Made, Row, learned_last, without_repeats

CONFIRMED = ("confirmed", "rating", "feedback", "thumbs")  # keys that may say it
YES = {"true", "1", "1.0", "+1", "up", "good", "yes", "ok", "positive", "confirmed", "thumbs_up", "thumbsup"}
UNCONFIRMED = "was not confirmed"
CHANGED = "calls what today's tools do not take"
UNREADABLE = "holds no question with an answer"
REVISED = "is answered otherwise by a later record"


def make_from_log(path: Path, options: LogOptions) -> Made:
    """Rows of a log. Raises DataError for a log without a key that says whether answers were confirmed."""
    check_options(options)
    made = Made()
    kept: list[Row] = []
    newest: Any = None
    key = options.confirmed
    for line, record in read_rows(path):
        made.read += 1
        if not isinstance(record, Mapping):
            made.drop(UNREADABLE)
            continue
        newest = _part(record, "request", "tools") or newest
        key = key or next((name for name in CONFIRMED if name in record), "")
        if not key or not _is_confirmed(record.get(key)):
            made.drop(UNCONFIRMED)
            continue
        try:
            row = _row(record, key)
        except DataError as error:
            made.drop(UNREADABLE)
            made.notes[:] = made.notes or [f"{place(line, path.name)}: {error.what}"]
            continue
        kept.append(row)
    if made.read and not key:
        raise DataError(f"no record of {path.name} says whether its answer was confirmed",
                        f"give one of the keys {', '.join(CONFIRMED)}, or name yours with --confirmed")
    tools = _read_tools(Path(options.tools)) if options.tools else newest
    made.rows = [current for each in kept if (current := _with_tools(each, tools, made)) is not None]
    without_repeats(made)
    _without_revised(made)
    _note_changes(made, kept, tools)
    return made


def _row(record: Mapping[str, Any], key: str) -> Row:
    """The row of a record. Raises DataError."""
    found: dict[str, Any] = {name: value for name, value in record.items() if name not in (key, "request", "response")}
    if "request" in record:
        choices = _part(record, "response", "choices")
        first = choices[0] if isinstance(choices, Sequence) and choices else None
        answer = first.get("message") if isinstance(first, Mapping) else _part(record, "response", "message")
        asked = _part(record, "request", "messages")
        if not isinstance(answer, Mapping) or not isinstance(asked, list):
            raise DataError("the record has no messages with a message as response",
                            "write request and response as OpenAI's API has them")
        said = {name: answer[name] for name in ("role", "content", "tool_calls") if answer.get(name) is not None}
        said = {"content": None, **said} if "tool_calls" in said else said
        found = {"messages": [*asked, said], "tools": _part(record, "request", "tools")}
    known = recognised({name: value for name, value in found.items() if value is not None}, (supervised,))
    assert isinstance(known, Mapping)
    row = dict(known)
    if supervised.check_row(row) == "text":
        raise DataError("the record is a text without an answer", UNREADABLE)
    with suppress(CallError):  # it is counted by itself
        supervised.check_learnable(row)
    if "messages" in row:
        row = {**row, "messages": learned_last(row["messages"])}
    return {name: row[name] for name in ("messages", "prompt", "completion", "tools") if name in row}


def _with_tools(row: Row, tools: Any, made: Made) -> Row | None:
    """The row with today's tools, or None where it calls what they do not take; that is counted."""
    if row.get("tools") is None or tools is None:
        return row
    messages = row.get("messages") or supervised.as_messages(row["prompt"], row["completion"])
    try:
        for i, message in enumerate(messages):
            check_calls(f"messages[{i}]", message, tools)
    except CallError as error:
        made.drop(CHANGED)
        if not any(note.startswith("the first such call") for note in made.notes):
            made.notes.append(f"the first such call: {error.what}")
        return None
    return {**row, "tools": tools}


def _without_revised(made: Made) -> None:
    """Keeps the last of several answers to one question."""
    last = {question_digest(row): i for i, row in enumerate(made.rows)}
    kept = [row for i, row in enumerate(made.rows) if last[question_digest(row)] == i]
    for _ in range(len(made.rows) - len(kept)):
        made.drop(REVISED)
    made.rows = kept


def _note_changes(made: Made, kept: Sequence[Row], tools: Any) -> None:
    if tools is None:
        return
    today = canonical(tools)
    changed = sum(row.get("tools") is not None and canonical(row["tools"]) != today for row in kept)
    if changed:
        made.notes.append(f"{changed} confirmed records had other tools than today's, and were checked against those")


def _is_confirmed(value: Any) -> bool:
    return str(value).strip().casefold() in YES


def _part(record: Mapping[str, Any], outer: str, key: str) -> Any:
    """A value of a record, or of an object within it."""
    inner = record.get(outer)
    return inner.get(key) if isinstance(inner, Mapping) else record.get(key)


def _read_tools(path: Path) -> list[Any]:
    try:
        tools = json.loads(read_small(path, MIB))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error})",
                        "give the list of tools, as OpenAI writes it") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{path} holds no list of tools", "write [{\"type\": \"function\", \"function\": {...}}, ...]")
    return tools
