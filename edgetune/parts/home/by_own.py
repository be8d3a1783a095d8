"""A person's own sentences of a house, with the calls that are right for them.

    {"sentence": "movie time", "calls": [{"name": "HassTurnOff", "arguments": {"name": "Hall Lamp"}}]}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from .answering import Understood
from .entities import Home
from .sentences import Sentence, read_sentences
from .tools import TARGET, TOOLS, Target, bare, plain_name
from .wishes import OTHER, Wish


class ByOwn:
    """Answers the sentences of a file by the calls written there. Raises the errors of read_wishes."""

    busy_bytes = 0

    def __init__(self, path: str | Path, home: Home) -> None:
        self._wishes = {plain(sentence): wishes for sentence, wishes in read_wishes(path, home)}

    def understand(self, sentence: str) -> Understood:
        """The wishes of a sentence, whatever its letters' case and the marks at its end; not sure of another one."""
        wishes = self._wishes.get(plain(sentence))
        return Understood(wishes or (), wishes is not None)


def plain(sentence: str) -> str:
    """The sentence in small letters, without marks at its end. Sentences that are equal then mean the same."""
    return " ".join(sentence.lower().split()).strip(" .!?")


def read_wishes(path: str | Path, home: Home) -> list[tuple[str, tuple[Wish, ...]]]:
    """The sentences of a file and their wishes. Raises DataError, with the line."""
    return wishes_of(read_sentences(path), home)


def wishes_of(rows: Iterable[Sentence], home: Home) -> list[tuple[str, tuple[Wish, ...]]]:
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
