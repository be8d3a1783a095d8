"""The tools that Home Assistant offers to a language model for the entities of a house, and calls of them.

A tool is offered if the house has an entity of one of its domains. Its name is that of an intent of Home Assistant.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .entities import Entity, Home

NAME, AREA, FLOOR = "name", "area", "floor"
TARGET = (NAME, AREA, FLOOR, "domain", "device_class")
LIVE_CONTEXT, DATE_TIME, GET_ITEMS = "GetLiveContext", "GetDateTime", "get_items"
PREFIXED = "__"  # between the name of an integration and that of its tool, from 2026.9 on: intent__HassTurnOn
ALIASES = {"todo_get_items": GET_ITEMS}  # names before 2026.9 that are not only without a prefix
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Arguments = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": self.arguments}


@dataclass(frozen=True)
class HouseTool:
    """domains: of the entities that it acts on; () for a tool that is always offered. takes: its arguments, other than
    those that say which entities are meant. needs: the one without which it is no call, or ANY of them. spelled: its
    own names of keys of a target.
    """

    name: str
    domains: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    needs: str = ""
    spelled: tuple[tuple[str, str], ...] = ()

    def argument(self, key: str) -> str:
        """Its name of a key of a target."""
        return dict(self.spelled).get(key, key)

    @property
    def is_everywhere(self) -> bool:
        """Whether Home Assistant offers it to every house."""
        return self.domains == SWITCHED

    def is_complete(self, values: Mapping[str, Any]) -> bool:
        """Whether values have what the tool needs: an argument by name, or with "any" one of those that it takes."""
        return not self.needs or (bool(values) if self.needs == ANY else self.needs in values)


ANY = "any"
SWITCHED = ("light", "switch", "fan", "media_player", "cover", "lock", "climate", "valve", "input_boolean", "scene",
            "script", "button", "input_button", "humidifier", "siren", "vacuum", "water_heater", "automation", "group",
            "remote", "lawn_mower")
PLAYER = ("media_player",)
PLACED = (NAME, AREA, FLOOR)
TOOLS = {tool.name: tool for tool in (
    HouseTool("HassTurnOn", SWITCHED, TARGET),
    HouseTool("HassTurnOff", SWITCHED, TARGET),
    HouseTool("HassSetPosition", ("cover", "valve"), TARGET, ("position",), "position"),
    HouseTool("HassStopMoving", ("cover", "valve"), TARGET),
    HouseTool("HassLightSet", ("light",), (*PLACED, "domain"), ("brightness", "color", "temperature"), ANY),
    HouseTool("HassFanSetSpeed", ("fan",), (*PLACED, "domain"), ("percentage",), "percentage"),
    HouseTool("HassClimateSetTemperature", ("climate",), PLACED, ("temperature",), "temperature"),
    HouseTool("HassMediaPause", PLAYER, TARGET),
    HouseTool("HassMediaUnpause", PLAYER, TARGET),
    HouseTool("HassMediaNext", PLAYER, TARGET),
    HouseTool("HassMediaPrevious", PLAYER, TARGET),
    HouseTool("HassMediaPlayerMute", PLAYER, TARGET),
    HouseTool("HassMediaPlayerUnmute", PLAYER, TARGET),
    HouseTool("HassMediaSearchAndPlay", PLAYER, PLACED, ("search_query", "media_class"), "search_query"),
    HouseTool("HassSetVolume", PLAYER, TARGET, ("volume_level",), "volume_level"),
    HouseTool("HassSetVolumeRelative", PLAYER, PLACED, ("volume_step",), "volume_step"),
    HouseTool("HassVacuumStart", ("vacuum",), (*PLACED, "domain")),
    HouseTool("HassVacuumReturnToBase", ("vacuum",), (*PLACED, "domain")),
    HouseTool("HassLawnMowerStartMowing", ("lawn_mower",), (*PLACED, "domain")),
    HouseTool("HassLawnMowerDock", ("lawn_mower",), (*PLACED, "domain")),
    HouseTool("HassListAddItem", ("todo",), ("name",), ("item",), "item"),
    HouseTool("HassListCompleteItem", ("todo",), ("name",), ("item",), "item"),
    HouseTool("HassListRemoveItem", ("todo",), ("name",), ("item",), "item"),
    HouseTool(GET_ITEMS, ("todo",), ("name",), spelled=(("name", "todo_list"),)),
    HouseTool(LIVE_CONTEXT),
    HouseTool(DATE_TIME),
)}
INSTEAD = {"HassGetState": LIVE_CONTEXT, "HassClimateGetTemperature": LIVE_CONTEXT, "HassGetWeather": LIVE_CONTEXT,
           "HassGetCurrentTime": DATE_TIME, "HassGetCurrentDate": DATE_TIME, "HassVacuumCleanArea": "HassVacuumStart",
           "HassListItems": GET_ITEMS, "HassShoppingListItems": GET_ITEMS,
           "HassShoppingListAddItem": "HassListAddItem", "HassShoppingListCompleteItem": "HassListCompleteItem"}


def plain_name(sent: str) -> str:
    """The name in TOOLS of a tool that Home Assistant sends."""
    name = sent.rpartition(PREFIXED)[2]
    return ALIASES.get(name, name)


def offered(home: Home) -> list[HouseTool]:
    """The tools for a house."""
    return [tool for tool in TOOLS.values() if not tool.domains or home.domains & set(tool.domains)]


# ---- which entities a call means ----


@dataclass(frozen=True)
class Target:
    """The entities that a call acts on: one by its name, or all of a domain and class in an area, a floor, the house.
    """

    name: str = ""
    area: str = ""
    floor: str = ""
    domain: str = ""
    device_class: str = ""

    def arguments(self, tool: HouseTool) -> Arguments:
        """The arguments that the tool takes, in its order."""
        found: Arguments = {}
        for key in tool.target:
            if value := getattr(self, key):
                found[tool.argument(key)] = [value] if key in ("domain", "device_class") else value
        return found

    def entities(self, home: Home, tool: HouseTool) -> list[Entity]:
        return [one for one in home.entities
                if (not tool.domains or one.domain in tool.domains) and self.name in ("", *one.names)
                and self.area in ("", one.area) and self.floor in ("", one.floor) and self.domain in ("", one.domain)
                and self.device_class in ("", one.device_class)]


def shortest(target: Target, home: Home, tool: HouseTool) -> Target:
    """The same entities as Home Assistant prefers them: a single one by its name and domain."""
    found = target.entities(home, tool)
    if len(found) != 1:
        return target
    one = found[0]
    by_name = Target(one.name, domain=one.domain)
    return by_name if len(by_name.entities(home, tool)) == 1 else Target(one.name, one.area, domain=one.domain)


# ---- whether calls are right ----


def same_calls(calls: Sequence[Call], accepted: Iterable[Sequence[Mapping[str, Any]]]) -> bool:
    """Whether calls equal one of the accepted lists. A list of one value equals the value; order of keys is nothing."""
    said = [call_key(call.name, call.arguments) for call in calls]
    return any(said == [call_key(one["name"], one["arguments"]) for one in wanted] for wanted in accepted)


def call_key(name: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps([name, {key: bare(value) for key, value in arguments.items()}], sort_keys=True)


def bare(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    return int(value) if isinstance(value, float) and value.is_integer() else value
