"""edgetune.parts.home.completions: wishes as an encoder gives them, and back."""

import json

import pytest
from houses import HOUSE

from edgetune.parts.home.completions import fields_of, training_row, wish_of_fields
from edgetune.parts.home.entities import home_of
from edgetune.parts.home.language import language_of
from edgetune.parts.home.rows import HouseRow, RowDrawer
from edgetune.parts.home.tools import Target
from edgetune.parts.home.wishes import Wish

HOME = home_of(HOUSE, "house")
ENGLISH = language_of("en")


def test_fields_and_back():
    drawn = [wish for seed in range(3) for row in RowDrawer(HOME, ENGLISH, seed).draw(200) for wish in row.wishes]
    assert len(drawn) >= 600
    assert [wish_of_fields(json.loads(json.dumps(fields_of(wish)))) for wish in drawn] == drawn


def test_a_row_has_digits_and_values_that_stand_in_it():
    wish = Wish("HassLightSet", Target("Hall Lamp", domain="light"), {"brightness": 35})
    found = training_row(HouseRow("dim the hall lamp to thirty five", (wish,), "command"), ENGLISH)
    assert found["prompt"] == "dim the hall lamp to 35"
    assert json.loads(found["completion"])["number"] == 35
    assert training_row(HouseRow("hall lamp to the maximum", (wish,), "command"), ENGLISH) is None
    assert training_row(HouseRow("a and b", (wish, wish), "several"), ENGLISH) is None


@pytest.mark.parametrize("found", [{"tool": "HassTurnOn"}, {"tool": "nothing"}, {},
                                   {"tool": "HassSetPosition", "number": "half"}, {"tool": "HassSetVolumeRelative"}])
def test_fields_that_do_not_fit_together_are_no_error(found):
    assert isinstance(wish_of_fields(found), Wish)
