"""edgetune.parts.home.completions: wishes as an encoder and a model give them, back, and the grammar of a house."""

import json

import pytest
from houses import HOUSE
from schemas import lets_through

from edgetune.parts.home.completions import fields_of, grammar, lines_of, training_row, wish_of_fields, wishes_of
from edgetune.parts.home.entities import home_of
from edgetune.parts.home.language import language_of
from edgetune.parts.home.rows import HouseRow, RowDrawer
from edgetune.parts.home.tools import Target
from edgetune.parts.home.wishes import OTHER, UNFINISHED, Wish

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


@pytest.fixture(scope="module")
def drawn():
    """900 times one or more wishes."""
    return [row.wishes for code in ("en", "de", "fr") for row in RowDrawer(HOME, language_of(code)).draw(300)]


@pytest.mark.dev
def test_lines_and_back(drawn):
    assert len(drawn) == 900
    assert [wishes_of(lines_of(wishes, HOME), HOME) for wishes in drawn] == drawn


def test_lines_are_short():
    lamp = Wish("HassLightSet", Target("Hall Lamp", domain="light"), {"brightness": 35})
    lines = lines_of((lamp, Wish(why=OTHER)), HOME).splitlines()
    assert list(map(json.loads, lines)) == [{"tool": "HassLightSet", "name": "Hall Lamp", "brightness": 35},
                                            {"tool": "other"}]


def test_a_domain_stays_where_a_name_does_not_say_it():
    entities = [{"name": "Attic", "id": "light.attic"}, {"name": "Attic", "id": "fan.attic"}]
    twice = home_of({"entities": entities}, "twice")
    fan = (Wish("HassTurnOn", Target("Attic", domain="fan")),)
    assert json.loads(lines_of(fan, twice))["domain"] == "fan"
    assert wishes_of(lines_of(fan, twice), twice) == fan


@pytest.mark.dev
def test_the_grammar_of_a_house_lets_its_lines_through(tokenizer, drawn):
    rules = grammar(HOME)
    assert all(lets_through(tokenizer, rules, lines_of(wishes, HOME)) for wishes in drawn)


@pytest.mark.parametrize("line", [
    '{"tool": "HassTurnOn", "name": "Attic Lamp"}', '{"tool": "HassFly"}', '{"tool": "HassSetPosition"}', "on",
    '{"tool": "HassLightSet", "name": "Front Lock", "brightness": 10}', '{"tool": "HassTurnOn"}\n',
    '{"tool": "HassLightSet", "name": "Hall Lamp", "brightness": 101}', '{"tool": "HassTurnOn", "colour": "red"}'])
def test_the_grammar_keeps_others_out(tokenizer, line):
    assert not lets_through(tokenizer, grammar(HOME), line)


@pytest.mark.parametrize("text", ["on", "[]", '{"tool": "HassTurnOn"'])
def test_other_text_is_no_line(text):
    with pytest.raises(ValueError, match=r"."):
        wishes_of(text, HOME)


def test_an_unknown_tool_is_no_call():
    assert wishes_of('{"tool": "HassFly"}', HOME) == (Wish(why=UNFINISHED),)
