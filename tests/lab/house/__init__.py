"""The integration `house` of Home Assistant: entities of a YAML file, which keep what they were last told.

The file has the shape of the fixtures of home-assistant-datasets: areas (with a floor's name where they have one) and
entities with a name, an id, an area, a state and attributes. The proof copies this folder to `custom_components`.
"""

from __future__ import annotations

import importlib
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


class Sensor(Kept, SensorEntity):
    pass


class BinarySensor(Kept, BinarySensorEntity):
    pass


class Switch(Kept, SwitchEntity):
    async def async_turn_on(self, **_: Any) -> None:
        self.keep(is_on=True)

    async def async_turn_off(self, **_: Any) -> None:
        self.keep(is_on=False)


class Light(Kept, LightEntity):
    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row)
        modes = self._attr_supported_color_modes
        self._attr_supported_color_modes = set(modes)
        self._attr_color_mode = modes[0]  # some files have a list here

    async def async_turn_on(self, **given: Any) -> None:
        self.keep(is_on=True, **given)

    async def async_turn_off(self, **_: Any) -> None:
        self.keep(is_on=False)


class Lock(Kept, LockEntity):
    async def async_lock(self, **_: Any) -> None:
        self.keep(is_locked=True)

    async def async_unlock(self, **_: Any) -> None:
        self.keep(is_locked=False)


class Cover(Kept, CoverEntity):
    async def async_open_cover(self, **_: Any) -> None:
        await self.async_set_cover_position(100)

    async def async_close_cover(self, **_: Any) -> None:
        await self.async_set_cover_position(0)

    async def async_set_cover_position(self, position: int) -> None:
        self.keep(current_cover_position=position, is_closed=position == 0)

    async def async_stop_cover(self, **_: Any) -> None:
        self.keep()


class Valve(Kept, ValveEntity):
    _attr_reports_position = True

    def begins(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"current_valve_position": (row.get("attributes") or {}).get("current_position", 0)}

    async def async_set_valve_position(self, position: int) -> None:
        self.keep(current_valve_position=position)

    async def async_open_valve(self) -> None:
        self.keep(current_valve_position=100)

    async def async_close_valve(self) -> None:
        self.keep(current_valve_position=0)


class Fan(Kept, FanEntity):
    async def async_turn_on(self, percentage: int | None = None, *_: Any, **__: Any) -> None:
        self.keep(percentage=percentage or 100)

    async def async_turn_off(self, **_: Any) -> None:
        self.keep(percentage=0)

    async def async_set_percentage(self, percentage: int) -> None:
        self.keep(percentage=percentage)

    async def async_oscillate(self, oscillating: bool) -> None:
        self.keep(oscillating=oscillating)


class Climate(Kept, ClimateEntity):
    """One that takes a temperature; the files name a range only, which Assist cannot set."""

    _attr_fan_modes = ("low", "high")
    _attr_fan_mode = "low"

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row)
        self._attr_temperature_unit = "°C"
        self._attr_supported_features = (ClimateEntityFeature.TARGET_TEMPERATURE | ClimateEntityFeature.TURN_ON
                                         | ClimateEntityFeature.TURN_OFF | ClimateEntityFeature.FAN_MODE)

    async def async_set_temperature(self, **given: Any) -> None:
        self.keep(target_temperature=given["temperature"])

    async def async_set_hvac_mode(self, hvac_mode: str) -> None:
        self.keep(hvac_mode=hvac_mode)

    async def async_set_fan_mode(self, fan_mode: str) -> None:
        self.keep(fan_mode=fan_mode)


class MediaPlayer(Kept, MediaPlayerEntity):
    _attr_volume_level = 0.5
    _attr_is_volume_muted = False
    _attr_media_track = 3

    async def async_turn_on(self) -> None:
        self.keep(state="idle")

    async def async_turn_off(self) -> None:
        self.keep(state="off")

    async def async_media_play(self) -> None:
        self.keep(state="playing")

    async def async_media_pause(self) -> None:
        self.keep(state="paused")

    async def async_media_stop(self) -> None:
        self.keep(state="idle")

    async def async_media_next_track(self) -> None:
        self.keep(media_track=self._attr_media_track + 1)

    async def async_media_previous_track(self) -> None:
        self.keep(media_track=self._attr_media_track - 1)

    async def async_set_volume_level(self, volume: float) -> None:
        self.keep(volume_level=volume)

    async def async_mute_volume(self, mute: bool) -> None:
        self.keep(is_volume_muted=mute)


class Vacuum(Kept, StateVacuumEntity):
    async def async_start(self) -> None:
        self.keep(activity=VacuumActivity.CLEANING)

    async def async_pause(self) -> None:
        self.keep(activity=VacuumActivity.PAUSED)

    async def async_stop(self, **_: Any) -> None:
        self.keep(activity=VacuumActivity.IDLE)

    async def async_return_to_base(self, **_: Any) -> None:
        self.keep(activity=VacuumActivity.RETURNING)


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
