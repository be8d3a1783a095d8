"""edgetune.parts.home.chats and results: conversations with results of calls, as Home Assistant has them."""

import json
import random

import pytest
from houses import house, named

from edgetune.data.calls import check_calls
from edgetune.parts.home.chats import STATES, chat_row, result_of
from edgetune.parts.home.language import language_of
from edgetune.parts.home.prompt import prompt_of, versions
from edgetune.parts.home.replies import as_json, inner, states_of
from edgetune.parts.home.rows import HouseRow, RowDrawer
from edgetune.parts.home.tools import DATE_TIME, LIVE_CONTEXT, Target
from edgetune.parts.home.wishes import OTHER, Wish

ENGLISH = language_of("en")
TEXTS = ENGLISH.texts["answers"]


def chat(row, home, version="2026.11"):
    return chat_row(row, home, prompt_of(home, version), ENGLISH, random.Random(0))


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
    [lock] = [one for one in states_of([inner(as_json(result["content"]))]) if one["names"] == "Front Lock"]
    assert said["content"] == f"Front Lock is {lock['state']}."
    assert lock["state"] in STATES["lock"]


def test_a_command_is_done_and_no_call_follows(tmp_path):
    home = house(tmp_path)
    wish = Wish("HassTurnOn", Target(area="Hall", domain="light"))
    found = chat(HouseRow("light in the hall", (wish,), "command"), home)["messages"]
    assert [message["role"] for message in found] == ["system", "user", "assistant", "tool", "assistant"]
    lamp = named(home, "Hall Lamp")
    assert inner(as_json(found[3]["content"]))["data"]["success"] == [
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
