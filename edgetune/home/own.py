"""A person's own rows of a house: sentences with the calls that are right for them.

    {"sentence": "movie time", "calls": [{"name": "HassTurnOff", "arguments": {"name": "Hall Lamp"}}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .entities import Home
from .rows import Row
from .sentences import read_sentences
from .tools import TARGET, TOOLS, Target, bare, plain_name
from .wishes import OTHER, Wish

OWN = "own"  # the kind of such rows
TIMES = 4  # that each is learned, where a drawn one is learned once


def read_own(path: str | Path, home: Home) -> list[Row]:
    """The rows of a file. A row without calls is one for which none is right. Raises DataError, with the line."""
    found = []
    for place, row in read_sentences(path):
        calls = row.get("calls")
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise DataError(f"{place} has no list of calls", "write one; an empty list means that no call is right")
        wishes = tuple(wish_of_call(call, home, place) for call in calls)
        found.append(Row(row["sentence"].strip(), wishes or (Wish(why=OTHER),), OWN))
    return found


def wish_of_call(call: Mapping[str, Any], home: Home, place: str) -> Wish:
    """The wish of a call. Raises DataError for a tool, an argument or entities that the house does not have."""
    name = plain_name(str(call.get("name", "")))
    if (tool := TOOLS.get(name)) is None:
        raise DataError(f"{place} calls {name!r:.60}, which is no tool here", f"take one of {', '.join(TOOLS)}")
    keys = {tool.argument(key): key for key in tool.target}
    arguments = {keys.get(key, key): bare(value) for key, value in (call.get("arguments") or {}).items()}
    if wrong := sorted(arguments.keys() - {*tool.target, *tool.takes}):
        raise DataError(f"{place} gives {wrong[0]} to {name}, which takes {', '.join((*tool.target, *tool.takes))}",
                        "take one of these")
    target = Target(**{key: str(arguments.pop(key)) for key in TARGET if key in arguments})
    if tool.target and not target.entities(home, tool):
        raise DataError(f"{place} calls {name} for what the house does not have", "name an entity or area of it")
    if not tool.is_complete(arguments):
        raise DataError(f"{place} calls {name} without {tool.needs} of {', '.join(tool.takes)}", "add the argument")
    return Wish(name, target, arguments)


def with_own(drawn: Sequence[Row], own: Sequence[Row]) -> list[Row]:
    """Drawn rows, without those whose sentences a person has too, and then each of the person's several times. They
    stand at the end, so that none is held out.
    """
    said = {row.sentence.lower() for row in own}
    return [row for row in drawn if row.sentence.lower() not in said] + [*own] * TIMES
