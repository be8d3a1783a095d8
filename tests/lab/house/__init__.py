"""The integration `house` of Home Assistant: entities of a YAML file, which keep what they were last told.

The file has the shape of the fixtures of home-assistant-datasets: areas (with a floor's name where they have one) and
entities with a name, an id, an area, a state and attributes. The proof copies this folder to `custom_components`.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import yaml
from homeassistant.components.binary_sensor import BinarySensorEntity
from homeassistant.components.climate import ClimateEntity, ClimateEntityFeature
from homeassistant.components.cover import CoverEntity
from homeassistant.components.fan import FanEntity
from homeassistant.components.homeassistant.exposed_entities import async_expose_entity
from homeassistant.components.light import LightEntity
from homeassistant.components.lock import LockEntity
from homeassistant.components.media_player import MediaPlayerEntity
from homeassistant.components.sensor import SensorEntity
from homeassistant.components.switch import SwitchEntity
from homeassistant.components.todo import TodoItem, TodoListEntity
from homeassistant.components.vacuum import StateVacuumEntity, VacuumActivity
from homeassistant.components.valve import ValveEntity
from homeassistant.core import HomeAssistant, ServiceCall
from homeassistant.helpers import area_registry, entity_registry, floor_registry
from homeassistant.helpers.entity import Entity
from homeassistant.helpers.entity_component import DATA_INSTANCES

FILE = "house.yaml"
BY_STATE = {"light": "is_on", "switch": "is_on", "binary_sensor": "is_on", "lock": "is_locked", "cover": "is_closed",
            "sensor": "native_value", "media_player": "state", "vacuum": "activity"}
"""The property of each domain that a state of the file sets; it is read from its attributes where it has none here."""

WORDS = {"on": True, "off": False, "locked": True, "unlocked": False, "closed": True, "open": False}


class Kept(Entity):
    """An entity whose properties are attributes of the file, and then what services set."""

    _attr_should_poll = False

    def __init__(self, row: dict[str, Any]) -> None:
        self.entity_id = row["id"]
        self.domain = row["id"].partition(".")[0]
        self._attr_unique_id = row["id"]
        self._attr_name = row["name"]
        self.first: dict[str, Any] = {}  # what properties were before a service set them
        for name, value in {**self.begins(row), **(row.get("attributes") or {})}.items():
            setattr(self, f"_attr_{name}", self._value(value))

    def begins(self, row: dict[str, Any]) -> dict[str, Any]:
        """The properties that its state sets; a file says `closed` and `off` as false."""
        name = BY_STATE.get(self.domain)
        state = row.get("state")
        if name is None or state is None:
            return {}
        boolean = name.startswith("is_") and isinstance(state, str)
        return {name: WORDS[state] if boolean else state}

    def _value(self, value: Any) -> Any:
        """Names of Home Assistant's own constants (light.ColorMode.X), one or a list of flags, are looked up."""
        if isinstance(value, str) and value.count(".") == 2 and value.startswith(self.domain):
            module, group, name = value.split(".")
            return getattr(importlib.import_module(f"homeassistant.components.{module}"), group)[name]
        if isinstance(value, list):
            found = [self._value(item) for item in value]
            flags = any(found[n] is not item for n, item in enumerate(value))
            return reduce(or_, found) if flags else found
        return value

    @property
    def extra_state_attributes(self) -> dict[str, Any]:
        return {"house": True}

    def keep(self, **values: Any) -> None:
        for name, value in values.items():
            self.first.setdefault(name, getattr(self, f"_attr_{name}", None))
            setattr(self, f"_attr_{name}", value)
        self.async_write_ha_state()

    def begin(self, given: dict[str, Any]) -> None:
        """As the file has it, besides the properties that are given."""
        self.keep(**{**self.first, **given})


def sets(**values: Any) -> Callable[..., Awaitable[None]]:
    """A service that sets these properties: each to a value, or to what a function makes of the service's arguments."""
    async def service(self: Kept, *given: Any, **named: Any) -> None:
        self.keep(**{name: value(*given, **named) if callable(value) else value for name, value in values.items()})

    return service


class Sensor(Kept, SensorEntity):
    pass


class BinarySensor(Kept, BinarySensorEntity):
    pass


class Switch(Kept, SwitchEntity):
    async_turn_on = sets(is_on=True)
    async_turn_off = sets(is_on=False)


class Light(Kept, LightEntity):
    async_turn_off = sets(is_on=False)

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row)
        modes = self._attr_supported_color_modes
        self._attr_supported_color_modes = set(modes)
        self._attr_color_mode = modes[0]  # some files have a list here

    async def async_turn_on(self, **given: Any) -> None:
        self.keep(is_on=True, **given)


class Lock(Kept, LockEntity):
    async_lock = sets(is_locked=True)
    async_unlock = sets(is_locked=False)


class Cover(Kept, CoverEntity):
    async_open_cover = sets(current_cover_position=100, is_closed=False)
    async_close_cover = sets(current_cover_position=0, is_closed=True)
    async_set_cover_position = sets(current_cover_position=lambda position: position,
                                    is_closed=lambda position: position == 0)
    async_stop_cover = sets()


class Valve(Kept, ValveEntity):
    _attr_reports_position = True
    async_set_valve_position = sets(current_valve_position=lambda position: position)
    async_open_valve = sets(current_valve_position=100)
    async_close_valve = sets(current_valve_position=0)

    def begins(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"current_valve_position": (row.get("attributes") or {}).get("current_position", 0)}


class Fan(Kept, FanEntity):
    async_turn_on = sets(percentage=lambda percentage=None, *_, **__: percentage or 100)
    async_turn_off = sets(percentage=0)
    async_set_percentage = sets(percentage=lambda percentage: percentage)
    async_oscillate = sets(oscillating=lambda oscillating: oscillating)


class Climate(Kept, ClimateEntity):
    """One that takes a temperature; the files name a range only, which Assist cannot set."""

    _attr_fan_modes = ("low", "high")
    _attr_fan_mode = "low"
    async_set_temperature = sets(target_temperature=lambda temperature, **_: temperature)
    async_set_hvac_mode = sets(hvac_mode=lambda hvac_mode: hvac_mode)
    async_set_fan_mode = sets(fan_mode=lambda fan_mode: fan_mode)

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row)
        self._attr_temperature_unit = "°C"
        self._attr_supported_features = (ClimateEntityFeature.TARGET_TEMPERATURE | ClimateEntityFeature.TURN_ON
                                         | ClimateEntityFeature.TURN_OFF | ClimateEntityFeature.FAN_MODE)


class MediaPlayer(Kept, MediaPlayerEntity):
    _attr_volume_level = 0.5
    _attr_is_volume_muted = False
    _attr_media_track = 3
    async_turn_on = async_media_stop = sets(state="idle")
    async_turn_off = sets(state="off")
    async_media_play = sets(state="playing")
    async_media_pause = sets(state="paused")
    async_set_volume_level = sets(volume_level=lambda volume: volume)
    async_mute_volume = sets(is_volume_muted=lambda mute: mute)

    async def async_media_next_track(self) -> None:
        self.keep(media_track=self._attr_media_track + 1)

    async def async_media_previous_track(self) -> None:
        self.keep(media_track=self._attr_media_track - 1)


class Vacuum(Kept, StateVacuumEntity):
    async_start = sets(activity=VacuumActivity.CLEANING)
    async_pause = sets(activity=VacuumActivity.PAUSED)
    async_stop = sets(activity=VacuumActivity.IDLE)
    async_return_to_base = sets(activity=VacuumActivity.RETURNING)


class Todo(Kept, TodoListEntity):
    @property
    def extra_state_attributes(self) -> dict[str, Any]:
        return {"house": True, "items": [item.summary for item in self._attr_todo_items]}

    async def async_create_todo_item(self, item: TodoItem) -> None:
        item.uid = f"{len(self._attr_todo_items)} {item.summary}"
        self.keep(todo_items=[*self._attr_todo_items, item])

    async def async_update_todo_item(self, item: TodoItem) -> None:
        self.keep(todo_items=[item if old.uid == item.uid else old for old in self._attr_todo_items])

    async def async_delete_todo_items(self, uids: list[str]) -> None:
        self.keep(todo_items=[item for item in self._attr_todo_items if item.uid not in uids])


KINDS = {"binary_sensor": BinarySensor, "climate": Climate, "cover": Cover, "fan": Fan, "light": Light, "lock": Lock,
         "media_player": MediaPlayer, "sensor": Sensor, "switch": Switch, "todo": Todo, "vacuum": Vacuum,
         "valve": Valve}


async def async_setup(hass: HomeAssistant, _: dict[str, Any]) -> bool:
    """All entities of the file stand in their areas and are exposed to Assist."""
    text = await hass.async_add_executor_job(Path(hass.config.path(FILE)).read_text)
    house = yaml.safe_load(text)
    areas = {area["id"]: _area(hass, area) for area in house["areas"]}
    made = [KINDS[row["id"].partition(".")[0]](row) for row in house["entities"]]
    for domain in KINDS:
        await hass.data[DATA_INSTANCES][domain].async_add_entities([each for each in made if each.domain == domain])
    for row in house["entities"]:
        entity_registry.async_get(hass).async_update_entity(row["id"], area_id=areas.get(row.get("area")))
        async_expose_entity(hass, "conversation", row["id"], True)

    async def begin(call: ServiceCall) -> None:
        for each in made:
            each.begin(call.data["given"].get(each.entity_id, {}))

    hass.services.async_register("house", "begin", begin)
    return True


def _area(hass: HomeAssistant, area: dict[str, Any]) -> str:
    """Its id in Home Assistant's registry, which may have it from its first start, and gets its floor."""
    registry = area_registry.async_get(hass)
    entry = registry.async_get_area_by_name(area["name"]) or registry.async_create(area["name"])
    if name := area.get("floor"):
        floors = floor_registry.async_get(hass)
        floor = floors.async_get_floor_by_name(name) or floors.async_create(name)
        registry.async_update(entry.id, floor_id=floor.floor_id)
    return entry.id
