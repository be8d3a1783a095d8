"""edgetune.parts.home.entities: files of areas and entities."""

import pytest
import yaml
from houses import HOUSE, house, named

from edgetune.errors import DataError
from edgetune.parts.home.entities import Area, Entity, read_home


def test_areas_devices_and_classes_are_read(tmp_path):
    found = house(tmp_path)
    assert found.areas[0] == Area("Hall", "Ground")
    assert named(found, "Reading Lamp") == Entity("light.reading_lamp", "Reading Lamp", "Study", "Upper",
                                                  aliases=("book light",))
    assert named(found, "West Awning").device_class == "awning"
    assert found.floors == ("Ground", "Upper")
    assert "media_player" in found.domains


@pytest.mark.parametrize(("changed", "says"), [
    ({"entities": []}, "no entities"),
    ({"entities": "light.hall"}, "is no list"),
    ({"entities": [{"id": "light.hall"}]}, "without a name"),
    ({"entities": [{"name": "Lamp", "id": "lamp"}]}, "the id 'lamp'"),
    ({"entities": [{"name": "Lamp", "id": "light.hall", "area": "attic"}]}, "in the area attic"),
    ({"entities": [{"name": f"Lamp {i}", "id": f"light.l{i}"} for i in range(501)]}, "the limit is 500"),
])
def test_other_files_are_refused(tmp_path, changed, says):
    path = tmp_path / "house.yaml"
    path.write_text(yaml.safe_dump({**HOUSE, **changed}))
    with pytest.raises(DataError, match=says):
        read_home(path)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\xff"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "house.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"house\.yaml"):
        read_home(path)
