"""edgetune.parts.home.systems: a system in one file, which touches nothing else, has rows, calls and corrections."""

import json
from pathlib import Path

import pytest
from commands import run
from json_lines import read_lines, write_lines

import edgetune.parts.home.systems
from edgetune.parts.home.entities import Entity, read_home
from edgetune.parts.home.language import language_of
from edgetune.parts.home.own import own_rows
from edgetune.parts.home.replies import Replies, Reply
from edgetune.parts.home.rows import read_own
from edgetune.parts.home.systems.home_assistant import SYSTEM
from edgetune.parts.home.systems.registry import asking, system_at, systems
from edgetune.parts.home.tools import Call, Target
from edgetune.parts.home.understanding import ByOwn, Understood
from edgetune.parts.home.wishes import Wish

TOOLS = ["send_command", "list_items"]
ITEMS = [{"type": "Group", "name": "Hall", "label": "Hall"},
         {"type": "Dimmer", "name": "Hall_Lamp", "label": "Hall Lamp", "group": "Hall", "state": "ON"},
         {"type": "Switch", "name": "Kettle", "label": "Kettle", "group": "Hall", "state": "OFF"},
         {"type": "Number", "name": "Warmth", "label": "Hall Warmth", "group": "Hall", "state": "21"}]


@pytest.fixture
def toy(monkeypatch):
    """The toy of tests/fixtures/systems, found as those of the folder are."""
    folder = Path(__file__).parents[2] / "fixtures" / "systems"
    package = edgetune.parts.home.systems
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    systems.cache_clear()
    yield system_at("toy:items")
    systems.cache_clear()


@pytest.fixture
def house(tmp_path, toy):  # noqa: ARG001 (it is there)
    """The file of the toy's entities."""
    (tmp_path / "items.json").write_text(json.dumps(ITEMS))
    run("home", "entities", "--url", f"toy:{tmp_path / 'items.json'}", "-o", tmp_path / "house.yaml")
    return tmp_path / "house.yaml"


def row_of(text, item, command):
    """A correction by a call of the toy."""
    call = {"name": "send_command", "arguments": {"item": item, "command": command}}
    messages = [{"role": "user", "content": text},
                {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}]
    return {"state": "new", "row": {"messages": messages, "tools": [{"function": {"name": name}} for name in TOOLS]}}


def test_its_entities_are_read(house):
    assert read_home(house).entities == (
        Entity("light.Hall_Lamp", "Hall Lamp", "Hall"), Entity("switch.Kettle", "Kettle", "Hall"),
        Entity("sensor.Warmth", "Hall Warmth", "Hall"))


def test_rows_are_about_its_entities_and_have_calls_that_it_takes(tmp_path, house, toy):
    run("home", "rows", house, "-o", tmp_path / "rows.jsonl", "--count", 300)
    calls = [Call(**call) for row in read_lines(tmp_path / "rows.jsonl") for call in row["calls"]]
    names = toy.offered(TOOLS)
    sent = [toy.call(call, names[call.name]) for call in calls
            if call.name in names and {"name", "area"} & call.arguments.keys()]
    assert {call.arguments["item"] for call in sent} == {"Hall_Lamp", "Kettle"}  # shortest: by their names
    assert {"ON", "OFF"} < {call.arguments["command"] for call in sent}
    by_name = [call for call in calls if call.name in ("HassTurnOn", "HassTurnOff") and "name" in call.arguments]
    assert by_name
    assert all(toy.meant(toy.call(call, "send_command")) == Call(call.name, {"name": call.arguments["name"]})
               for call in by_name)


def test_corrections_in_its_calls_become_rows_and_answers_its_calls(tmp_path, house):
    rows = own_rows([row_of("movie time", "Hall_Lamp", "20"), row_of("tea", "Kettle", "ON")])
    own = write_lines(tmp_path / "own.jsonl", rows)
    assert read_own(own, read_home(house))[0].wishes == (
        Wish("HassLightSet", Target("Hall Lamp"), {"brightness": 20}),)
    replies = Replies(ByOwn(own, read_home(house)), language_of("en"))
    for sentence, item, command in (("Movie time!", "Hall_Lamp", "20"), ("tea", "Kettle", "ON")):
        found = replies.reply([{"role": "user", "content": sentence}], TOOLS)
        assert found == Reply((Call("send_command", {"item": item, "command": command}),))
    assert replies.reply([{"role": "user", "content": "tea"}], ["HassTurnOn"]).calls[0].name == "HassTurnOn"


@pytest.mark.usefixtures("toy")
def test_its_results_are_said():
    class Asks:
        def understand(self, _):
            return Understood((Wish("GetLiveContext", Target("Hall Lamp")),), is_sure=True)

    asked = [{"role": "user", "content": "is the lamp on"}]
    call = Replies(Asks(), language_of("en")).reply(asked, TOOLS)
    assert call == Reply((Call("list_items"),))
    asked += [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "list_items"}}]},
              {"role": "tool", "content": json.dumps(ITEMS)}]
    assert Replies(Asks(), language_of("en")).reply(asked, TOOLS).text == "Hall Lamp is ON."


def test_another_request_or_address_is_not_its(toy):
    assert asking(["HassTurnOn"])[0] is SYSTEM is not toy
    assert asking(["search"]) is None
    assert system_at("http://homeassistant.local") is system_at("nonsense") is SYSTEM
