"""edgetune.parts.home.chats and prompt: what Home Assistant sends, and conversations with results of calls."""

import json
import random

import ollama
import pytest
from commands import run
from houses import house, named, write_house

from edgetune.data.calls import check_calls
from edgetune.errors import UsageError
from edgetune.parts.home.chats import STATES, chat_row, result_of
from edgetune.parts.home.entities import read_home
from edgetune.parts.home.language import language_of
from edgetune.parts.home.prompt import prompt_of, static_context, through_ollama, versions
from edgetune.parts.home.replies import states_of
from edgetune.parts.home.rows import HouseRow, RowDrawer
from edgetune.parts.home.systems.home_assistant import SYSTEM
from edgetune.parts.home.tools import DATE_TIME, LIVE_CONTEXT, Target, offered
from edgetune.parts.home.wishes import OTHER, Wish


@pytest.mark.parametrize("version", versions())
def test_tools_fit_the_house(tmp_path, version):
    home = house(tmp_path)
    prompt = prompt_of(home, version)
    wanted = {tool.name for tool in offered(home)}
    missing = {"2026.2": {"HassListRemoveItem"}, "2026.11": {"HassMediaSearchAndPlay"}}[version]
    assert wanted - prompt.names.keys() == missing
    assert "HassVacuumStart" not in prompt.names
    assert ("todo__HassListAddItem" in prompt.names.values()) == (version == "2026.11")
    items = next(tool for tool in prompt.tools if "get_items" in tool["function"]["name"])
    assert items["function"]["parameters"]["properties"]["todo_list"]["enum"] == ["Errands"]
    assert prompt.names["HassTurnOn"] + " to lock" in prompt.system
    assert static_context(home) in prompt.system


@pytest.mark.parametrize("version", versions())
def test_tools_of_rows_are_as_ollamas_client_sends_them(tmp_path, version):
    for tool in prompt_of(house(tmp_path), version).tools:
        assert through_ollama(tool) == ollama.Tool(**tool).model_dump(exclude_none=True)


def test_another_version_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no prompt of Home Assistant 2019\.1"):
        prompt_of(house(tmp_path), "2019.1")


@pytest.mark.parametrize("name", ["dom1-pl", "home2-ru", "home5-cn", "home7-dk"])
def test_the_entities_stand_there_as_home_assistant_writes_them(shared_data, name):
    """By the recorded prompts of a public benchmark. home1-us has a name there that its file does not have."""
    folder = shared_data / "home_assistant"
    if not folder.is_dir():
        pytest.skip("needs the part of home-assistant-datasets that make data does not fetch")
    sent = json.loads((folder / "systems.json").read_text())[name]
    home = read_home(folder / "fixtures" / f"{name}.yaml")
    recorded = sent.partition("smart home:\n")[2].partition("\n\nWhen")[0].strip()
    assert static_context(home).lower() == recorded.lower()


@pytest.mark.dev
def test_rows_for_a_model_that_writes_text(tmp_path):
    to = tmp_path / "rows.jsonl"
    drawn = ["--count", 200, "--for", "2026.11", "--json"]
    said = json.loads(run("home", "rows", write_house(tmp_path), "-o", to, *drawn))
    rows = [json.loads(line) for line in to.read_text().splitlines()]
    assert said["rows"] == len(rows) > 150
    assert "HassMediaSearchAndPlay" not in said["tools"]
    for row in rows:
        system, user, answer, *after = row["messages"]
        check_calls("row", answer, row["tools"])
        assert system["content"].startswith("You are")
        assert user["content"]
        assert bool(answer.get("tool_calls")) == bool(after) != bool(answer["content"])


ENGLISH = language_of("en")
TEXTS = ENGLISH.texts["answers"]


def chat(row, home, version="2026.11"):
    return chat_row(row, home, prompt_of(home, version), ENGLISH, random.Random(0))


@pytest.mark.dev
@pytest.mark.parametrize("version", versions())
def test_every_drawn_row_is_a_conversation_to_its_end(tmp_path, version):
    home = house(tmp_path)
    for row in RowDrawer(home, ENGLISH).draw(200):
        if (found := chat(row, home, version)) is None:
            continue
        *before, last = found["messages"]
        assert last["role"] == "assistant"
        assert last["content"]
        assert "tool_calls" not in last
        assert sum(message["role"] == "tool" for message in before) == len(row.calls)
        for message in found["messages"]:
            check_calls("a message", message, found["tools"])


def test_a_question_is_answered_by_the_states_in_its_result(tmp_path):
    home = house(tmp_path)
    wish = Wish(LIVE_CONTEXT, Target("Front Lock", domain="lock"))
    *_, result, said = chat(HouseRow("is the front lock locked", (wish,), "question"), home)["messages"]
    [lock] = [one for one in states_of([SYSTEM.result(result["content"])]) if one["names"] == "Front Lock"]
    assert said["content"] == f"Front Lock is {lock['state']}."
    assert lock["state"] in STATES["lock"]


def test_a_command_is_done_and_no_call_follows(tmp_path):
    home = house(tmp_path)
    wish = Wish("HassTurnOn", Target(area="Hall", domain="light"))
    found = chat(HouseRow("light in the hall", (wish,), "command"), home)["messages"]
    assert [message["role"] for message in found] == ["system", "user", "assistant", "tool", "assistant"]
    lamp = named(home, "Hall Lamp")
    assert SYSTEM.result(found[3]["content"])["data"]["success"] == [
        {"name": lamp.name, "type": "entity", "id": lamp.id}]
    assert found[4]["content"] == TEXTS["done"]


def test_without_a_call_there_is_no_result(tmp_path):
    found = chat(HouseRow("hello", (Wish(why=OTHER),), "other"), house(tmp_path))["messages"]
    assert [message["role"] for message in found] == ["system", "user", "assistant"]


def test_results_are_wrapped_as_the_version_does(tmp_path):
    home = house(tmp_path)
    time = Wish(DATE_TIME)
    before, since = (json.loads(result_of(time, home, random.Random(1), is_wrapped, ["milk"]))
                     for is_wrapped in (False, True))
    assert before == {"success": True, "result": since["data"]["result"]}
    assert since["error"] is False
    assert set(before["result"]) == {"date", "time", "timezone", "weekday"}
