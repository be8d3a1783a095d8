"""A wish as the fields that an encoder gives, and back.

    "dim the kitchen light to 40" -> {"tool": "HassLightSet", "target": "{\\"name\\": ...}", "number": 40}

`tool` and `target` are of few values. A number and a text are cut out of the sentence: of all tools the same two, so
that each is learned from all rows. Where no call is right, `tool` says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .language import Language
from .tools import LIVE_CONTEXT, TOOLS, Target
from .wishes import Wish

if TYPE_CHECKING:
    from .rows import Row

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


def training_row(row: Row, language: Language) -> dict[str, str] | None:
    """A row of one wish for an encoder; None where a value does not stand in the sentence."""
    if len(row.wishes) != 1:
        return None
    sentence = language.in_digits(row.sentence)
    found = fields_of(row.wishes[0])
    copied = [str(found[key]).lower() for key in ("number", "text") if key in found]
    if not all(value in sentence.lower() for value in copied):
        return None
    return {"prompt": sentence, "completion": json.dumps(found, ensure_ascii=False)}
