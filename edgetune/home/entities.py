"""The entities of a house, with the areas and floors in which they are.

A file names them in YAML, in the form of the fixtures of home-assistant-datasets:

    areas:
      - {name: Kitchen, id: kitchen, floor: Ground}
    entities:
      - {name: Kitchen Light, id: light.kitchen, area: kitchen, aliases: [big lamp]}

An entity may name a device in place of its area, and `attributes.device_class` what it is. Other keys are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..disk import read_small
from ..errors import DataError

MOST_BYTES = 2 << 20
MOST_ENTITIES = 500


@dataclass(frozen=True)
class Area:
    name: str
    floor: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entity:
    """id: its domain, a dot and a name of letters. area, floor: names; "" for none."""

    id: str
    name: str
    area: str = ""
    floor: str = ""
    device_class: str = ""
    aliases: tuple[str, ...] = ()

    @cached_property
    def domain(self) -> str:
        return self.id.partition(".")[0]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)


@dataclass(frozen=True)
class Home:
    """What an assistant may see of a house."""

    entities: tuple[Entity, ...]
    areas: tuple[Area, ...] = ()

    @property
    def floors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(area.floor for area in self.areas if area.floor))

    @cached_property
    def domains(self) -> set[str]:
        return {entity.domain for entity in self.entities}


def read_home(path: str | Path) -> Home:
    """The house of a YAML file. Raises DataError for another form, FileNotFoundError without a file."""
    import yaml
    try:
        found = yaml.safe_load(read_small(path, MOST_BYTES).decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no YAML: {' '.join(str(error).split())!s:.120}", "write it as docs/how-to/"
                        "home-assistant.md shows, or take the entities from Home Assistant by --url") from None
    if not isinstance(found, Mapping):
        raise DataError(f"{path} has no list of entities", "begin it with areas: and entities:")
    return home_of(found, str(path))


def home_of(found: Mapping[str, Any], name: str) -> Home:
    """The house of a mapping with areas, devices and entities. Raises DataError, which names the file."""
    areas = {str(one.get("id", one["name"])): Area(one["name"], str(one.get("floor") or ""), texts(one))
             for one in listed(found, "areas", name)}
    devices = {str(one.get("id", one["name"])): str(one.get("area") or "") for one in listed(found, "devices", name)}
    entities = [entity_of(one, areas, devices, name) for one in listed(found, "entities", name)]
    if not entities:
        raise DataError(f"{name} has no entities", "add some below entities:, each with a name and an id")
    if len(entities) > MOST_ENTITIES:
        raise DataError(f"{name} has {len(entities)} entities, the limit is {MOST_ENTITIES}",
                        "leave out what nobody asks for")
    return Home(tuple(entities), tuple(areas.values()))


def listed(found: Mapping[str, Any], key: str, name: str) -> list[Mapping[str, Any]]:
    """The mappings below a key, each with a name."""
    rows = found.get(key) or []
    if not isinstance(rows, list):
        raise DataError(f"{key} of {name} is no list", "write a dash before each of its rows")
    for row in rows:
        if not isinstance(row, Mapping) or not isinstance(row.get("name"), str) or not row["name"].strip():
            raise DataError(f"{name} has a row of {key} without a name: {row!s:.80}", "give it a name")
    return rows


def entity_of(row: Mapping[str, Any], areas: Mapping[str, Area], devices: Mapping[str, str], name: str) -> Entity:
    identity = row.get("id")
    if not isinstance(identity, str) or "." not in identity.strip("."):
        raise DataError(f"the entity {row['name']} of {name} has the id {identity!r}",
                        "write its domain, a dot and a name, such as light.kitchen")
    key = str(row.get("area") or devices.get(str(row.get("device")), "") or "")
    area = areas.get(key) or next((one for one in areas.values() if one.name == key), None)
    if key and not area:
        raise DataError(f"the entity {row['name']} of {name} is in the area {key}, which is not there",
                        f"add it below areas:, or take one of {', '.join(areas) or 'none'}")
    attributes = row.get("attributes") or {}
    kind = str(attributes.get("device_class") or row.get("device_class") or "").rpartition(".")[2].lower()
    return Entity(identity, row["name"].strip(), area.name if area else "", area.floor if area else "", kind,
                  texts(row))


def texts(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The aliases of a row."""
    found: Sequence[Any] = row.get("aliases") or []
    return tuple(str(one).strip() for one in found if str(one).strip())
