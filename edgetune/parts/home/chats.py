"""Rows of a house as conversations, for a model that reads the whole prompt of Home Assistant and writes calls.

Results of calls are made up in the form in which Home Assistant returns them: the model learns to say a short sentence
after a call, and to call nothing more.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...disk import json_lines, replaced
from .entities import Entity, Home
from .language import HouseLanguage
from .prompt import AssistPrompt, Message, prompt_of, through_ollama
from .replies import after_results
from .systems.home_assistant import SYSTEM
from .tools import DATE_TIME, GET_ITEMS, LIVE_CONTEXT, TOOLS
from .wishes import Wish

if TYPE_CHECKING:
    from .rows import HouseRow

STATES = {"light": ("on", "off"), "switch": ("on", "off"), "fan": ("on", "off"), "input_boolean": ("on", "off"),
          "binary_sensor": ("on", "off"), "cover": ("open", "closed"), "valve": ("open", "closed"),
          "lock": ("locked", "unlocked"), "climate": ("heat", "off"), "vacuum": ("docked", "cleaning"),
          "media_player": ("playing", "paused", "idle"), "todo": ("0", "1", "2"), "lawn_mower": ("docked", "mowing")}
UNITS = {"temperature": "°C", "humidity": "%", "battery": "%", "power": "W", "energy": "kWh", "illuminance": "lx"}
OVERVIEW = "Live Context: An overview of the areas and the devices in this smart home:"


def result_of(wish: Wish, home: Home, rng: random.Random, is_wrapped: bool, items: Sequence[str]) -> str:
    """JSON of the result of a wish's call that went well. is_wrapped: as from 2026.10 on. items: of lists."""
    if wish.tool == LIVE_CONTEXT:
        found = lookup(live_context(home, rng), is_wrapped)
    elif wish.tool == GET_ITEMS:
        found = lookup([{"summary": one, "status": "needs_action"} for one in rng.sample(items, rng.randrange(4))],
                       is_wrapped)
    elif wish.tool == DATE_TIME:
        moment = datetime(2026, 1, 1) + timedelta(minutes=rng.randrange(365 * 24 * 60))
        found = lookup({"date": moment.strftime("%Y-%m-%d"), "time": moment.strftime("%H:%M:%S"), "timezone": "UTC",
                        "weekday": moment.strftime("%A")}, is_wrapped)
    else:
        success = [{"name": one.name, "type": "entity", "id": one.id}
                   for one in wish.target.entities(home, TOOLS[wish.tool])]
        done = {"speech": {}, "response_type": "action_done",
                "data": {"targets": [], "success": success, "failed": []}}
        found = {"data": done, "error": False} if is_wrapped else done
    return json.dumps(found, ensure_ascii=False)


def lookup(result: Any, is_wrapped: bool) -> dict[str, Any]:
    """The result of a tool that is no intent."""
    return {"data": {"result": result}, "error": False} if is_wrapped else {"success": True, "result": result}


def live_context(home: Home, rng: random.Random) -> str:
    """The states of all entities, drawn at random."""
    import yaml
    rows = []
    for one in sorted(home.entities, key=lambda one: (one.name, one.id)):
        state, unit = state_of(one, rng)
        row: dict[str, Any] = {"names": ", ".join(one.names), "domain": one.domain, "state": state}
        if one.area:
            row["areas"] = one.area
        attributes = {"unit_of_measurement": unit, "device_class": one.device_class}
        if known := {key: value for key, value in attributes.items() if value}:
            row["attributes"] = known
        rows.append(row)
    return f"{OVERVIEW}\n{yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=10**6)}"


def state_of(entity: Entity, rng: random.Random) -> tuple[str, str]:
    """A state of an entity, and its unit."""
    if known := STATES.get(entity.domain):
        return rng.choice(known), ""
    if unit := UNITS.get(entity.device_class, ""):
        return f"{rng.uniform(1, 99):.1f}", unit
    return "unknown", ""


def write_chats(path: Path, rows: Sequence[HouseRow], home: Home, language: HouseLanguage, version: str,
                seed: int = 0) -> list[HouseRow]:
    """Writes a conversation a line, all or none; returns the rows whose tools this version has. seed: of the states in
    results. Raises DiskError, and the errors of prompt_of.
    """
    prompt = prompt_of(home, version)
    rng = random.Random(seed)
    chats = [(row, chat_row(row, home, prompt, language, rng)) for row in rows]
    with replaced(path) as beside:
        beside.write_text(json_lines(chat for _, chat in chats if chat), encoding="utf-8")
    return [row for row, chat in chats if chat]


def chat_row(row: HouseRow, home: Home, prompt: AssistPrompt, language: HouseLanguage,
             rng: random.Random) -> Message | None:
    """The question, then calls, their results and a sentence, or an answer in words where no call is right. None where
    a tool is not offered.
    """
    answers = language.texts["answers"]
    items = language.texts["wildcards"]["items"]
    if any(call.name not in prompt.names for call in row.calls):
        return None
    messages: list[Message] = [{"role": "system", "content": prompt.system}, {"role": "user", "content": row.sentence}]
    if row.calls:
        results = [result_of(wish, home, rng, prompt.is_wrapped, items) for wish in row.wishes if wish.tool]
        said = after_results(row.wishes, {call.name for call in row.calls},
                             list(map(SYSTEM.result, results)), answers)
        calls = [{"type": "function", "function": {"name": prompt.names[call.name], "arguments": call.arguments}}
                 for call in row.calls]
        messages += [{"role": "assistant", "content": "", "tool_calls": calls},
                     *({"role": "tool", "content": result} for result in results),
                     {"role": "assistant", "content": said}]
    else:
        messages.append({"role": "assistant", "content": answers.get(row.why, "")})
    return {"messages": messages, "tools": [through_ollama(tool) for tool in prompt.tools]}
