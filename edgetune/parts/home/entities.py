"""The entities of a house, with the areas and floors in which they are.

A file names them in YAML, in the form of the fixtures of home-assistant-datasets:

    areas:
      - {name: Kitchen, id: kitchen, floor: Ground}
    entities:
      - {name: Kitchen Light, id: light.kitchen, area: kitchen, aliases: [big lamp]}

An entity may name a device in place of its area, and `attributes.device_class` what it is. Other keys are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...data.yaml_text import read_yaml
from ...disk import read_small
from ...errors import DataError, NotFoundError

MOST_BYTES = 2 << 20
MOST_ENTITIES = 500
WAY_OUT = "name a file as docs/how-to/home-assistant.md shows, or take the entities from Home Assistant by --url"


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
    """The house of a YAML file. Raises NotFoundError without a file, DataError for one of another form."""
    try:
        content = read_small(path, MOST_BYTES)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}", "check the path") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", WAY_OUT) from None
    found = read_yaml(content, str(path), MOST_BYTES)
    if not isinstance(found, Mapping):
        raise DataError(f"{path} has no list of entities", "begin it with areas: and entities:")
    return home_of(found, str(path))


def home_of(found: Mapping[str, Any], name: str) -> Home:
    """The house of a mapping with areas, devices and entities. Raises DataError, which names the file."""
    areas = {text_of(one, "id", name) or one["name"]: Area(one["name"], text_of(one, "floor", name), texts(one, name))
             for one in listed(found, "areas", name)}
    devices = {text_of(one, "id", name) or one["name"]: text_of(one, "area", name)
               for one in listed(found, "devices", name)}
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
    key = text_of(row, "area", name) or devices.get(text_of(row, "device", name), "")
    area = areas.get(key) or next((one for one in areas.values() if one.name == key), None)
    if key and not area:
        raise DataError(f"the entity {row['name']} of {name} is in the area {key}, which is not there",
                        f"add it below areas:, or take one of {', '.join(areas) or 'none'}")
    attributes = row.get("attributes") or {}
    if not isinstance(attributes, Mapping):
        raise wrong(row, "attributes", name, "write keys with values below it")
    kind = text_of(attributes, "device_class", name) or text_of(row, "device_class", name)
    return Entity(identity, row["name"].strip(), area.name if area else "", area.floor if area else "",
                  kind.rpartition(".")[2].lower(), texts(row, name))


def texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The aliases of a row. Raises DataError, which names the file."""
    found = row.get("aliases") or []
    if not isinstance(found, list) or any(isinstance(one, list | Mapping) for one in found):
        raise wrong(row, "aliases", name, "write a list of texts, such as [big lamp, ceiling light]")
    return tuple(str(one).strip() for one in found if one is not None and str(one).strip())


def text_of(row: Mapping[str, Any], key: str, name: str) -> str:
    """The text below a key of a row, "" without one. Raises DataError, which names the file."""
    found = row.get(key)
    if isinstance(found, list | Mapping):
        raise wrong(row, key, name, "write a text")
    return "" if found is None else str(found)


def wrong(row: Mapping[str, Any], key: str, name: str, hint: str) -> DataError:
    """The error to raise for a value of another kind."""
    owner = f" of {row['name']!r:.60}" if "name" in row else ""
    return DataError(f"{key}{owner} in {name} is {row[key]!r:.60}", hint)
