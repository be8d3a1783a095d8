"""A person's own sentences of a house, with the calls that are right for them, and the corrections of a daemon as such.

    {"sentence": "movie time", "calls": [{"name": "HassTurnOff", "arguments": {"name": "Hall Lamp"}}]}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.calls import calls_in
from ...data.files import read_rows
from ...data.yaml_text import HALF_PAIR
from ...errors import DataError
from .entities import Home
from .systems.registry import asking
from .tools import TARGET, TOOLS, Call, Target, bare, plain_name
from .wishes import OTHER, Wish

Sentence = tuple[str, dict[str, Any]]
"""Words for the place of a row, and the row."""


def read_sentences(path: str | Path) -> Iterator[Sentence]:
    """The rows of a file, each with a `sentence`, and words for their places. Raises DataError for another row."""
    for line, row in read_rows(Path(path)):
        place = f"line {line} of {path}"
        if not isinstance(row, Mapping) or not isinstance(row.get("sentence"), str) or not row["sentence"].strip():
            raise DataError(f"{place} has no sentence", 'write {"sentence": "turn on the lamp"}')
        if HALF_PAIR.search(row["sentence"]):
            raise DataError(f"{place} has half a pair of surrogates in its sentence", "write it as UTF-8")
        yield place, dict(row)


def plain(sentence: str) -> str:
    """The sentence in small letters, without marks at its end. Sentences that are equal then mean the same."""
    return " ".join(sentence.lower().split()).strip(" .!?")


def own_wishes(rows: Iterable[Sentence], home: Home) -> list[tuple[str, tuple[Wish, ...]]]:
    """The sentences of rows and their wishes. Without calls, none is right. Raises DataError, with the line."""
    found = []
    for place, row in rows:
        calls = row.get("calls")
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise DataError(f"{place} has no list of calls", "write one; an empty list means that no call is right")
        wishes = tuple(wish_of_call(call, home, place) for call in calls)
        found.append((row["sentence"].strip(), wishes or (Wish(why=OTHER),)))
    return found


def wish_of_call(call: Mapping[str, Any], home: Home, place: str) -> Wish:
    """The wish of a call. Raises DataError for a tool, an argument or entities that the house does not have."""
    name = plain_name(str(call.get("name", "")))
    if (tool := TOOLS.get(name)) is None:
        raise DataError(f"{place} calls {name!r:.60}, which is no tool here", f"take one of {', '.join(TOOLS)}")
    keys = {tool.argument(key): key for key in tool.target}
    given = call.get("arguments") or {}
    if not isinstance(given, Mapping):
        raise DataError(f"{place} calls {name} with the arguments {given!r:.60}", 'write {"name": "Lamp"}')
    arguments = {keys.get(key, key): bare(value) for key, value in dict[str, Any](given).items()}
    if odd := [key for key, value in arguments.items() if isinstance(value, list | Mapping)]:
        raise DataError(f"{place} gives {odd[0]:.60} of {name} as {arguments[odd[0]]!r:.60}",
                        "write a text or a number")
    if wrong := sorted(arguments.keys() - {*tool.target, *tool.takes}):
        raise DataError(f"{place} gives {wrong[0]:.60} to {name}, which takes {', '.join((*tool.target, *tool.takes))}",
                        "take one of these")
    target = Target(**{key: str(arguments.pop(key)) for key in TARGET if key in arguments})
    if tool.target and not target.entities(home, tool):
        raise DataError(f"{place} calls {name} for what the house does not have", "name an entity or area of it")
    if not tool.is_complete(arguments):
        raise DataError(f"{place} calls {name} without {tool.needs} of {', '.join(tool.takes)}", "add the argument")
    return Wish(name, target, arguments)


WITHDRAWN = "withdrawn"  # the state of feedback that counts no longer


def own_rows(feedback: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows {"sentence", "calls"} out of feedback, the latest first, as the daemon lists it. Of equal sentences the
    first counts. Raises CallError for a correction whose call is no JSON.
    """
    found: dict[str, dict[str, Any]] = {}
    for piece in feedback:
        row = piece.get("row") or {}
        messages: Sequence[Mapping[str, Any]] = row.get("messages") or ()
        by = asking([tool["function"]["name"] for tool in row.get("tools") or ()])
        if piece.get("state") == WITHDRAWN or not is_answered(messages) or not by:
            continue
        sentence = str(messages[-2]["content"]).strip()
        said = calls_in(messages[-1], f"the correction of {sentence!r:.60}")
        calls = [by[0].meant(Call(name, arguments)).to_json() for name, arguments in said]
        found.setdefault(plain(sentence), {"sentence": sentence, "calls": calls})
    return list(found.values())


def is_answered(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last message answers a user's sentence, not the result of a call, and is not empty, as it is if no
    right answer is known.
    """
    asked, said = messages[-2:] if len(messages) > 1 else ({}, {})
    is_known = bool(said.get("content") or said.get("tool_calls"))
    return asked.get("role") == "user" and isinstance(asked.get("content"), str) and is_known
