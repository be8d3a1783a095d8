"""edgetune.parts.home.own: a person's own rows."""

import json

import pytest
from houses import house

from edgetune.errors import DataError
from edgetune.parts.home.rows import OWN, TIMES, HouseRow, read_own, with_own
from edgetune.parts.home.tools import Target
from edgetune.parts.home.understanding import ByOwn, Understood
from edgetune.parts.home.wishes import OTHER, Wish

LAMP = {"name": "HassTurnOff", "arguments": {"name": "Hall Lamp", "domain": ["light"]}}
OFF = Wish("HassTurnOff", Target("Hall Lamp", domain="light"))


def written(folder, *rows):
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_calls_are_read_by_either_name(tmp_path):
    dim = {"name": "light__HassLightSet", "arguments": {"area": "Hall", "brightness": 20.0}}
    path = written(tmp_path, {"sentence": " movie time ", "calls": [LAMP, dim]}, {"sentence": "oh dear", "calls": []})
    assert read_own(path, house(tmp_path)) == [
        HouseRow("movie time", (OFF, Wish("HassLightSet", Target(area="Hall"), {"brightness": 20})), OWN),
        HouseRow("oh dear", (Wish(why=OTHER),), OWN)]


@pytest.mark.parametrize(("row", "says"), [
    ({"sentence": ""}, "line 2 .* has no sentence"),
    ({"sentence": "x"}, "no list of calls"),
    ({"sentence": "x", "calls": ["HassTurnOn"]}, "no list of calls"),
    ({"sentence": "x", "calls": [{"name": "Explode"}]}, "'Explode', which is no tool"),
    ({"sentence": "x", "calls": [{"name": "HassTurnOn", "arguments": {"colour": "red"}}]}, "gives colour to"),
    ({"sentence": "x", "calls": [{"name": "HassTurnOn", "arguments": {"name": "Sauna"}}]}, "does not have"),
    ({"sentence": "x", "calls": [{"name": "HassSetVolume", "arguments": {"name": "Jukebox"}}]}, "without volume_level"),
])
def test_other_rows_are_refused_with_their_line(tmp_path, row, says):
    path = written(tmp_path, {"sentence": "movie time", "calls": [LAMP]}, row)
    with pytest.raises(DataError, match=says):
        read_own(path, house(tmp_path))


def test_they_are_answered_as_they_stand(tmp_path):
    own = ByOwn(written(tmp_path, {"sentence": "Movie time", "calls": [LAMP]}, {"sentence": "oh", "calls": []}),
                house(tmp_path))
    assert own.understand(" movie  time!") == Understood((OFF,), is_sure=True)
    assert own.understand("oh").calls == []
    assert own.understand("oh").is_sure
    assert not own.understand("movie times").is_sure


def test_they_count_more_than_drawn_ones():
    own = [HouseRow("Movie time", (OFF,), OWN)]
    drawn = [HouseRow("movie time", (Wish(why=OTHER),), "other"), HouseRow("lamp off", (OFF,), "command")]
    assert with_own(drawn, own) == [drawn[1], *own * TIMES]
