"""edgetune.parts.home: sentences and what they ask for, compared with hassil's own recognizer."""

import random
from collections import Counter

import pytest
from hassil import recognize_all
from hassil.intents import TextSlotList
from hassil.util import normalize_text
from houses import house

from edgetune.parts.home.entities import Entity, Home
from edgetune.parts.home.language import language_of, languages
from edgetune.parts.home.rows import SHARES, RowDrawer, elsewhere
from edgetune.parts.home.templates import NothingFits, Templates
from edgetune.parts.home.tools import TOOLS, Call, Target, offered, same_calls, shortest
from edgetune.parts.home.wishes import MISSING, WHICH, Wish, wish_of


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return house(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def english():
    return language_of("en")


@pytest.fixture(scope="module")
def rows(home, english):
    return RowDrawer(home, english, seed=3).draw(600)


def slot_lists(home: Home):
    names = [(one.name, one.name, {"domain": one.domain}) for one in home.entities]
    areas = [(name, area.name) for area in home.areas for name in (area.name, *area.aliases)]
    return {"name": TextSlotList.from_tuples(names, name="name"), "area": TextSlotList.from_tuples(areas, name="area"),
            "floor": TextSlotList.from_tuples([(floor, floor) for floor in home.floors], name="floor")}


@pytest.mark.dev
@pytest.mark.parametrize("code", languages())
def test_drawn_sentences_mean_what_hassil_recognizes(home, code):
    """hassil finds the intent and the slots of a drawn sentence among its readings."""
    language = language_of(code)
    templates = Templates(language, home, lambda entity, _: entity.name)
    rng = random.Random(0)
    drawn = []
    while len(drawn) < 60:
        try:
            drawn.append(templates.draw(rng.choice(list(language.intents.intents)), rng))
        except NothingFits:
            continue
    lists = slot_lists(home)
    context = {"area": "Hall"}
    for draw in drawn:
        text = draw.text
        for word in sorted(language.amounts, key=len, reverse=True):  # hassil knows none
            text = text.replace(f" {word}", f" {language.amounts[word]}")
        readings = [reading for said in {draw.text, text}
                    for reading in recognize_all(said, language.intents, slot_lists=lists, intent_context=context)]
        found = [reading for reading in readings if reading.intent.name == draw.intent]
        assert found, draw
        slots = {key: normal(value) for key, value in draw.slots.items()}
        assert any(slots.items() <= {key: normal(one.value) for key, one in reading.entities.items()}.items()
                   for reading in found), draw


def normal(value):
    return normalize_text(value).strip().lower() if isinstance(value, str) else value


def test_the_same_seed_gives_the_same_rows(home, english):
    first, second = (RowDrawer(home, english, seed=5).draw(50) for _ in range(2))
    assert first == second
    assert RowDrawer(home, english, seed=6).draw(50) != first


def test_all_kinds_and_tools_are_drawn(home, rows):
    kinds = Counter(row.kind for row in rows)
    assert kinds.keys() == SHARES.keys()
    assert kinds["command"] > len(rows) / 2
    assert {call.name for row in rows for call in row.calls} == {tool.name for tool in offered(home)}
    assert len({row.sentence.lower() for row in rows}) == len(rows) == 600


def test_calls_are_of_offered_tools_and_name_what_the_house_has(home, rows):
    for row in rows:
        for wish in row.wishes:
            assert bool(wish.tool) != bool(wish.why)
            if wish.tool and TOOLS[wish.tool].target:
                tool = TOOLS[wish.tool]
                assert wish.target.entities(home, tool)
                assert wish.call().arguments.keys() <= {*map(tool.argument, tool.target), *tool.takes}


def test_one_template_or_entity_does_not_fill_the_rows(rows):
    words = Counter(row.sentence.lower().split()[0] for row in rows if row.kind == "command")
    assert words.most_common(1)[0][1] < 0.15 * len(rows)
    named = Counter(wish.target.name for row in rows for wish in row.wishes if wish.target.domain == "light")
    assert 0.5 < named["Hall Lamp"] / named["Reading Lamp"] < 2


def test_a_house_without_anything_to_switch_has_questions(english):
    sensors = Home((Entity("sensor.a", "Cellar Warmth"), Entity("binary_sensor.b", "Cellar Window")))
    kinds = Counter(row.kind for row in RowDrawer(sensors, english).draw(200))
    assert kinds["question"] > 20
    assert not kinds.keys() & {"command", "several"}


def test_other_devices_are_none_of_the_house(home, english):
    known = {name.lower() for one in home.entities for name in one.names}
    assert not known & {one.name.lower() for one in elsewhere(home, english).entities}


# ---- what a sentence asks for ----


@pytest.mark.parametrize(("intent", "slots", "said", "wish"), [
    ("HassTurnOn", {"domain": "light"}, set(), Wish(why=WHICH)),
    ("HassTurnOff", {"domain": "light"}, {"all"}, Wish("HassTurnOff", Target(domain="light"))),
    ("HassTurnOn", {"domain": "light", "area": "Hall"}, set(), Wish("HassTurnOn", Target("Hall Lamp", domain="light"))),
    ("HassTurnOn", {"domain": "lock"}, set(), Wish("HassTurnOn", Target("Front Lock", domain="lock"))),
    ("HassMediaPause", {}, set(), Wish("HassMediaPause", Target("Jukebox", domain="media_player"))),
    ("HassVacuumStart", {}, set(), Wish(why=MISSING)),
    ("HassFanSetSpeed", {"percentage": 40}, set(), Wish(why=MISSING)),
    ("HassShoppingListAddItem", {"item": "rice"}, set(),
     Wish("HassListAddItem", Target("Errands", domain="todo"), {"item": "rice"})),
    ("HassGetState", {"domain": "light", "state": "on"}, set(), Wish("GetLiveContext", Target(domain="light"))),
    ("HassStartTimer", {"minutes": 5}, set(), Wish(why="cannot")),
])
def test_wishes(home, intent, slots, said, wish):
    from edgetune.parts.home.templates import Draw
    assert wish_of(Draw("", intent, slots, None, said), home) == wish


def test_a_target_is_as_short_as_home_assistant_prefers(home):
    tool = TOOLS["HassTurnOn"]
    assert shortest(Target(area="Hall", domain="light"), home, tool) == Target("Hall Lamp", domain="light")
    whole = Target(domain="light")
    assert shortest(whole, home, tool) == whole
    assert Target("Hall Lamp", domain="light").arguments(tool) == {"name": "Hall Lamp", "domain": ["light"]}


# ---- right calls ----


def test_a_list_of_one_and_the_value_are_the_same_call():
    said = [Call("HassTurnOn", {"name": "Hall Lamp", "domain": ["light"]})]
    assert same_calls(said, [[], [{"name": "HassTurnOn", "arguments": {"domain": "light", "name": "Hall Lamp"}}]])
    assert same_calls([Call("A", {"n": 50.0})], [[{"name": "A", "arguments": {"n": 50}}]])
    assert not same_calls(said, [[{"name": "HassTurnOn", "arguments": {"name": "Hall Lamp"}}]])
    assert not same_calls(said, [])
    assert not same_calls([], [[{"name": "HassTurnOn", "arguments": {}}]])
    assert same_calls([], [[]])


# ---- language ----


def test_numbers_become_digits(english):
    assert english.in_digits("dim it to twenty five percent") == "dim it to 25 %"
    assert english.in_digits("to twenty-five") == "to 25"
    assert english.in_digits("One hundred") == "100"
    assert english.in_digits("the often used tent") == "the often used tent"


@pytest.mark.parametrize(("code", "said", "digits", "parts"), [
    ("de", "auf fünfundzwanzig Prozent", "auf 25 %", ["mach das Licht an", "schließ die Tür"]),
    ("fr", "à vingt-cinq pour cent", "à 25 %", ["allume la lampe", "ferme la porte"])])
def test_other_languages(code, said, digits, parts):
    language = language_of(code)
    assert language.in_digits(said) == digits
    assert language.parts(language.texts["joins"][0].join(parts)) == parts


def test_all_languages_have_the_same_texts():
    found = {code: language_of(code).texts for code in languages()}
    assert all(texts.keys() == found["en"].keys() for texts in found.values())
    assert all(texts["answers"].keys() == found["en"]["answers"].keys() for texts in found.values())


def test_a_sentence_is_cut_where_wishes_are_joined(english):
    assert english.parts("turn on the lamp, then lock the door and stop the music.") == [
        "turn on the lamp", "lock the door", "stop the music"]
    assert english.parts("hand me the sandwich") == ["hand me the sandwich"]
