"""A wish as what a model learns to give for it, and back: fields of an encoder, or lines of a model that writes text.

    "dim the kitchen light to 40" -> {"tool": "HassLightSet", "target": "{\\"name\\": ...}", "number": 40}

`tool` and `target` are of few values. A number and a text are cut out of the sentence: of all tools the same two, so
that each is learned from all rows. Where no call is right, `tool` says why.

    "dim the kitchen light to 40, and lock the door" ->
        {"tool": "HassLightSet", "name": "Kitchen Light", "brightness": 40}
        {"tool": "HassTurnOn", "name": "Front Door"}

A line leaves out the domain where the name alone means the same. A grammar allows the lines of a house, and no others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ...serving.tool_calls import grammar_of_lines
from .entities import Home
from .language import HouseLanguage
from .prompt import value_schemas
from .tools import LIVE_CONTEXT, TARGET, TOOLS, HouseTool, Target, offered, shortest
from .wishes import CANNOT, MISSING, OTHER, UNFINISHED, WHICH, Wish

if TYPE_CHECKING:
    from .rows import HouseRow

NUMBERS = {"HassSetPosition": "position", "HassFanSetSpeed": "percentage", "HassClimateSetTemperature": "temperature",
           "HassSetVolume": "volume_level", "HassSetVolumeRelative": "volume_step", "HassLightSet": "brightness"}
TEXTS = {"HassListAddItem": "item", "HassListCompleteItem": "item", "HassListRemoveItem": "item",
         "HassMediaSearchAndPlay": "search_query", "HassLightSet": "color"}
LEAST_KELVIN = 1000  # of a light, whose brightness is at most 100
STEPS = {"up": 1, "down": -1}
Fields = dict[str, Any]


def fields_of(wish: Wish) -> Fields:
    """The fields of a wish."""
    if not wish.tool:
        return {"tool": wish.why}
    found: Fields = {"tool": wish.tool}
    if target := {key: value for key, value in asdict(wish.target).items() if value}:
        found["target"] = json.dumps(target, ensure_ascii=False)
    for value in wish.values.values():
        if isinstance(value, int):
            found["number"] = abs(value)
    if text := wish.values.get(TEXTS.get(wish.tool, "")):
        found["text"] = text
    if kind := wish.values.get("media_class"):
        found["kind"] = kind
    if step := wish.values.get("volume_step"):
        found["kind"] = step if isinstance(step, str) else "up" if step > 0 else "down"
    if "temperature" in wish.values and wish.tool == "HassLightSet":
        found["kind"] = "temperature"
    return found


def wish_of_fields(found: Mapping[str, Any]) -> Wish:
    """The inverse of `fields_of`, of fields that an encoder gave; a value of another kind is left out."""
    tool = TOOLS.get(found.get("tool", ""))
    if tool is None:
        return Wish(why=str(found.get("tool", "")))
    has_target = "target" in found and (tool.target or tool.name == LIVE_CONTEXT)
    target = Target(**json.loads(found["target"])) if has_target else Target()
    values: dict[str, Any] = {}
    number, text, kind = found.get("number"), found.get("text"), found.get("kind")
    if tool.name == "HassSetVolumeRelative":
        values["volume_step"] = STEPS[kind] * number if isinstance(number, int) and kind in STEPS else kind or "up"
    elif tool.name == "HassLightSet" and isinstance(number, int) and number >= LEAST_KELVIN:
        values["temperature"] = number
    elif tool.name in NUMBERS and isinstance(number, int):
        values[NUMBERS[tool.name]] = number
    if tool.name in TEXTS and text:
        values[TEXTS[tool.name]] = text
    if tool.name == "HassMediaSearchAndPlay" and kind:
        values["media_class"] = kind
    return Wish(tool.name, target, values)


def training_row(row: HouseRow, language: HouseLanguage) -> dict[str, str] | None:
    """A row of one wish for an encoder; None where a value does not stand in the sentence."""
    if len(row.wishes) != 1:
        return None
    sentence = language.in_digits(row.sentence)
    found = fields_of(row.wishes[0])
    copied = [str(found[key]).lower() for key in ("number", "text") if key in found]
    if not all(value in sentence.lower() for value in copied):
        return None
    return {"prompt": sentence, "completion": json.dumps(found, ensure_ascii=False)}


MOST_LINES = 4  # wishes in a sentence
WHY = (MISSING, WHICH, CANNOT, OTHER, UNFINISHED)
TEXT = {"type": "string", "minLength": 1, "maxLength": 80}


def lines_of(wishes: Sequence[Wish], home: Home) -> str:
    return "\n".join(line_of(wish, home) for wish in wishes)


def line_of(wish: Wish, home: Home) -> str:
    if not wish.tool:
        return json.dumps({"tool": wish.why})
    brief = replace(wish.target, domain="")  # `shortest` may give the domain back
    is_whole = not brief.name or shortest(brief, home, TOOLS[wish.tool]) != wish.target
    target = {key: value for key, value in asdict(wish.target if is_whole else brief).items() if value}
    return json.dumps({"tool": wish.tool, **target, **wish.values}, ensure_ascii=False)


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
    why = {"type": "object", "properties": {"tool": {"enum": list(WHY)}}, "required": ["tool"],
           "additionalProperties": False}
    return grammar_of_lines([*(schema_of(tool, home) for tool in offered(home)), why], MOST_LINES)


def schema_of(tool: HouseTool, home: Home) -> dict[str, Any]:
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
