"""A house of tests, as a file of entities."""

from pathlib import Path

import yaml

from edgetune.parts.home.entities import Entity, Home, read_home

HOUSE = {
    "areas": [{"name": "Hall", "id": "hall", "floor": "Ground"}, {"name": "Study", "id": "study", "floor": "Upper"},
              {"name": "Terrace", "id": "terrace", "aliases": ["Deck"]}],
    "devices": [{"name": "Hub", "id": "hub", "area": "study"}],
    "entities": [
        {"name": "Hall Lamp", "id": "light.hall_lamp", "area": "hall"},
        {"name": "Reading Lamp", "id": "light.reading_lamp", "device": "hub", "aliases": ["book light"]},
        {"name": "Front Lock", "id": "lock.front", "area": "hall"},
        {"name": "Jukebox", "id": "media_player.jukebox", "area": "study"},
        {"name": "West Awning", "id": "cover.west", "area": "terrace",
         "attributes": {"device_class": "cover.CoverDeviceClass.AWNING"}},
        {"name": "Errands", "id": "todo.errands"},
        {"name": "Study Warmth", "id": "sensor.warmth", "area": "study"},
    ],
}


def write_house(folder: Path) -> Path:
    path = folder / "house.yaml"
    path.write_text(yaml.safe_dump(HOUSE))
    return path


def house(folder: Path) -> Home:
    return read_home(write_house(folder))


def named(home: Home, name: str) -> Entity | None:
    """The entity of this name."""
    return next((one for one in home.entities if one.name == name), None)
