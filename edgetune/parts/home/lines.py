"""Wishes as lines of JSON that a model writes, one each, and back; and the grammar of the lines that a house allows.

    "dim the kitchen light to 40, and lock the door" ->
        {"tool": "HassLightSet", "name": "Kitchen Light", "brightness": 40}
        {"tool": "HassTurnOn", "name": "Front Door"}

A line leaves out the domain where the name alone means the same. Where no call is right, its `tool` says why.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ...serving.tool_calls import grammar_of_lines
from .entities import Home
from .prompt import value_schemas
from .tools import LIVE_CONTEXT, TARGET, TOOLS, Target, Tool, offered, shortest
from .wishes import CANNOT, MISSING, OTHER, UNFINISHED, WHICH, Wish

MOST_LINES = 4  # wishes in a sentence
WHY = (MISSING, WHICH, CANNOT, OTHER, UNFINISHED)
TEXT = {"type": "string", "minLength": 1, "maxLength": 80}


def lines_of(wishes: Sequence[Wish], home: Home) -> str:
    return "\n".join(line_of(wish, home) for wish in wishes)


def line_of(wish: Wish, home: Home) -> str:
    if not wish.tool:
        return json.dumps({"tool": wish.why})
    target = {key: value for key, value in asdict(brief(wish.target, home, TOOLS[wish.tool])).items() if value}
    return json.dumps({"tool": wish.tool, **target, **wish.values}, ensure_ascii=False)


def brief(target: Target, home: Home, tool: Tool) -> Target:
    """The target without its domain, where `shortest` gives it back."""
    without = replace(target, domain="")
    return without if target.name and shortest(without, home, tool) == target else target


def wishes_of(text: str, home: Home) -> tuple[Wish, ...]:
    """The inverse of `lines_of`. Raises ValueError for text that is no such lines."""
    return tuple(wish_of_line(line, home) for line in text.strip().splitlines())


def wish_of_line(line: str, home: Home) -> Wish:
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError(f"{line!r:.80} is no object")
    name = found.pop("tool", "")
    if (tool := TOOLS.get(name)) is None:
        return Wish(why=name if name in WHY else UNFINISHED)
    target = Target(**{key: str(found.pop(key)) for key in TARGET if key in found})
    return Wish(name, shortest(target, home, tool) if target.name else target, found)


def grammar(home: Home) -> str:
    """GBNF of the lines about a house: its tools, its names, and values of their types."""
    return grammar_of_lines(schemas(home), MOST_LINES)


def schemas(home: Home) -> list[dict[str, Any]]:
    """A schema of each tool's line, and one of the lines that say why there is no call."""
    why = {"type": "object", "properties": {"tool": {"enum": list(WHY)}}, "required": ["tool"],
           "additionalProperties": False}
    return [*(schema_of(tool, home) for tool in offered(home)), why]


def schema_of(tool: Tool, home: Home) -> dict[str, Any]:
    """Keys in the order of `line_of`. A target has names of entities that the tool acts on."""
    meant = [one for one in home.entities if not tool.domains or one.domain in tool.domains]
    values = {"name": [one.name for one in meant], "area": [one.area for one in meant],
              "floor": [one.floor for one in meant], "domain": [one.domain for one in meant],
              "device_class": [one.device_class for one in meant]}
    properties: dict[str, Any] = {"tool": {"const": tool.name}}
    for key in TARGET if tool.name == LIVE_CONTEXT else tool.target:
        if known := sorted({value for value in values[key] if value}):
            properties[key] = {"enum": known}
    if tool.name == LIVE_CONTEXT:  # one may ask whether there is a fan at all
        properties |= {"domain": TEXT, "device_class": TEXT}
    for key in tool.takes:
        schema = value_schemas().get((tool.name, key), TEXT)
        properties[key] = TEXT if schema == {"type": "string"} else schema
    needed = [key for key in tool.takes if key == tool.needs]
    return {"type": "object", "properties": properties, "required": ["tool", *needed], "additionalProperties": False}
