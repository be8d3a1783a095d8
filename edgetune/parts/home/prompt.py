"""The system message and the tools that Home Assistant sends to a model, by its version.

The folder assist has its words and schemas, a file for each version that changed them. Up to 2026.8 a tool has the
name of its intent; from 2026.9 on that of its integration goes before it. The order of values in the schemas changes
from one start of Home Assistant to the next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import UsageError
from .entities import Home
from .tools import TOOLS, plain_name

FOLDER = Path(__file__).parent / "assist"
LISTS = ["{lists}"]  # stands in a schema for the names of the house's lists
Message = dict[str, Any]


@dataclass(frozen=True)
class AssistPrompt:
    """What Home Assistant sends for a house before each question. names: of the tools, by those without a prefix.
    is_wrapped: whether results of calls come as {"data": ..., "error": ...}.
    """

    system: str
    tools: tuple[Mapping[str, Any], ...]
    names: Mapping[str, str]
    is_wrapped: bool


def versions() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


@cache
def _sent(version: str) -> dict[str, Any]:
    if version not in versions():
        raise UsageError(f"there is no prompt of Home Assistant {version}", f"take one of {', '.join(versions())}")
    found: dict[str, Any] = json.loads((FOLDER / f"{version}.json").read_text(encoding="utf-8"))
    return found


@cache
def value_schemas() -> Mapping[tuple[str, str], Any]:
    """The schema of each tool's arguments, {(name without a prefix, argument): schema}; a later version's counts."""
    return {(plain_name(tool["name"]), argument): schema for version in versions()
            for tool in _sent(version)["tools"] for argument, schema in tool["parameters"]["properties"].items()}


def prompt_of(home: Home, version: str) -> AssistPrompt:
    """The prompt for a house. Raises UsageError for a version that is not among `versions`."""
    sent = _sent(version)
    system = sent["before"] + sent["title"] + static_context(home) + sent["after"]
    tools = [with_lists(tool, home) for tool in sent["tools"] if is_offered(tool["name"], home)]
    names = {plain_name(tool["name"]): tool["name"] for tool in tools}
    return AssistPrompt(system.strip(), tuple({"type": "function", "function": tool} for tool in tools), names,
                  bool(sent.get("wraps_results")))


def is_offered(name: str, home: Home) -> bool:
    plain = plain_name(name)
    if plain == "HassVacuumCleanArea":
        return "vacuum" in home.domains
    tool = TOOLS.get(plain)
    return tool is None or not tool.domains or tool.is_everywhere or bool(home.domains & set(tool.domains))


def with_lists(tool: Mapping[str, Any], home: Home) -> dict[str, Any]:
    """A tool whose schema has the names of the house's lists where they belong."""
    names = [one.name for one in home.entities if one.domain == "todo"]
    text = json.dumps(tool, ensure_ascii=False)
    found: dict[str, Any] = json.loads(text.replace(json.dumps(LISTS), json.dumps(names, ensure_ascii=False)))
    return found


def static_context(home: Home) -> str:
    """The entities in YAML, by their names, as the system message has them; without a newline at the end."""
    import yaml
    aliases = {area.name: area.aliases for area in home.areas}
    rows = []
    for one in sorted(home.entities, key=lambda one: (one.name, one.id)):
        row = {"names": ", ".join(one.names), "domain": one.domain}
        if one.area:
            row["areas"] = ", ".join((one.area, *aliases.get(one.area, ())))
        rows.append(row)
    return str(yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=10**6)).rstrip("\n")


def through_ollama(tool: Mapping[str, Any]) -> Message:
    """A tool as Ollama's client passes it on: of a schema, and of each argument, it keeps these keys alone."""
    function = tool["function"]
    schema = {key: function["parameters"][key] for key in ("type", "required") if key in function["parameters"]}
    arguments = {name: {key: argument[key] for key in ("type", "items", "description", "enum") if key in argument}
                 for name, argument in function["parameters"]["properties"].items()}
    return {"type": "function", "function": {"name": function["name"], "description": function["description"],
                                             "parameters": {**schema, "properties": arguments}}}
