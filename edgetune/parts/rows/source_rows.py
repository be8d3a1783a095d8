"""The rows of a source that may be mixed: usable, not repeated, and not held out. What is left out is counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data import rows as supervised
from ...data.files import read_rows
from ...data.formats import recognised
from ...data.question import content_text, user_text
from ...data.words import plain
from ...errors import DataError
from .duplicates import HeldPassages, NearDuplicates


@dataclass(frozen=True)
class SourceItem:
    """A row of a source. fields: its texts by name, which templates may use; None for a conversation of several turns,
    or one with tools or a system message, which is taken as it is.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[Any, ...] | None = None
    fields: Mapping[str, str] | None = None

    @property
    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {"messages": [dict(message) for message in self.messages]}
        return row if self.tools is None else {**row, "tools": list(self.tools)}


@dataclass
class Left:
    """Rows of a source, and how many of them were left out. first_unusable: why the first one cannot be used."""

    read: int = 0
    unusable: int = 0
    repeated: int = 0
    held_out: int = 0
    first_unusable: str = ""
    items: list[SourceItem] = field(default_factory=list)


def read_items(paths: Sequence[Path], near: NearDuplicates, held_out: HeldPassages) -> Left:
    """The rows of these files that may be mixed, in their order. Raises DataError where there are none."""
    left = Left()
    for path in paths:
        for _, row in read_rows(path):
            left.read += 1
            try:
                item = item_of(row)
            except DataError as error:
                left.unusable += 1
                left.first_unusable = left.first_unusable or error.what
                continue
            asked = user_text(item.row)
            if held_out.overlap(asked):
                left.held_out += 1
            elif near.add(asked, answer_of(item)):
                left.items.append(item)
            else:
                left.repeated += 1
    if not left.items:
        names = ", ".join(str(path) for path in paths)
        why = left.first_unusable or f"{left.held_out} are held out, {left.repeated} are repeats"
        raise DataError(f"{names} has no row to mix ({why})", "name files of questions with answers")
    return left


def item_of(row: Any) -> SourceItem:
    """A row as an item. Raises DataError for one that has no question and answer."""
    known = recognised(row, (supervised,))
    if supervised.check_learnable(known) == "text":
        raise DataError("the row is a text without a question", "mix rows of questions with answers")
    assert isinstance(known, Mapping)
    if "messages" not in known:
        others = {name: str(value) for name, value in row.items() if isinstance(value, str | int | float)}
        fields = {**others, "prompt": known["prompt"], "completion": known["completion"]}
        tools = known.get("tools")
        messages = supervised.as_messages(known["prompt"], known["completion"])
        return SourceItem(tuple(messages), tuple(tools) if tools else None, None if tools else fields)
    messages = [dict(message) for message in known["messages"]]
    tools = known.get("tools")
    roles = [message["role"] for message in messages]
    is_turn = roles == ["user", "assistant"] and "tool_calls" not in messages[1] and not tools
    plain_turn = {"prompt": content_text(messages[0]["content"]),
                  "completion": content_text(messages[1]["content"])} if is_turn else None
    return SourceItem(tuple(messages), None if tools is None else tuple(tools), plain_turn)


def answer_of(item: SourceItem) -> str:
    """The last message's text or calls, for comparisons."""
    last = item.messages[-1]
    return plain(f"{content_text(last.get('content'))} {last.get('tool_calls') or ''}")


def held_out_questions(paths: Iterable[Path]) -> list[str]:
    """The questions of held-out rows. Raises DataError."""
    return [asked for path in paths for _, row in read_rows(path)
            if (asked := user_text(recognised(row, (supervised,))))]
