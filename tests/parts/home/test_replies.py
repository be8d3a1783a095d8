"""edgetune.parts.home.replies: a conversation of Home Assistant, from the question to the sentence after its calls."""

import json
from dataclasses import dataclass

import pytest
from bounds import bounded_calls, bounded_memory
from odd_yaml import VALUES, bomb

from edgetune.parts.home.language import language_of
from edgetune.parts.home.replies import Replies, Reply
from edgetune.parts.home.tools import Call, Target
from edgetune.parts.home.understanding import Understood
from edgetune.parts.home.wishes import MISSING, Wish

TOOLS = ["GetLiveContext", "GetDateTime", "HassTurnOn", "HassTurnOff"]
LAMP = Target("Hall Lamp", domain="light")
KNOWN = {
    "lamp on": Understood((Wish("HassTurnOn", LAMP),), is_sure=True),
    "both": Understood((Wish("HassTurnOn", LAMP), Wish("HassTurnOff", LAMP)), is_sure=True),
    "sauna on": Understood((Wish(why=MISSING),), is_sure=True),
    "hm": Understood((Wish("HassTurnOn", LAMP),), is_sure=False),
    "pause": Understood((Wish("HassMediaPause", LAMP),), is_sure=True),
    "is the lamp on": Understood((Wish("GetLiveContext", LAMP),), is_sure=True),
    "how warm is it": Understood((Wish("GetLiveContext", Target(area="Study", domain="sensor")),), is_sure=True),
    "what is on the list": Understood((Wish("get_items", Target("Errands", domain="todo")),), is_sure=True),
    "what time is it": Understood((Wish("GetDateTime"),), is_sure=True),
}
CONTEXT = """Live Context: the state
- names: Hall Lamp, big lamp
  domain: light
  state: 'on'
  areas: Hall
- names: Study Warmth
  domain: sensor
  state: '21.5'
  areas: Study, Upper
  attributes:
    unit_of_measurement: °C
"""


@dataclass
class Table:
    """Understands what stands in a table, as an encoder that has learned it."""

    def understand(self, sentence):
        return KNOWN[sentence]


def replies():
    return Replies(Table(), language_of("en"))


def asked(text, *more):
    return [{"role": "system", "content": "You are at home."}, {"role": "user", "content": text}, *more]


def results(*contents, tool="HassTurnOn"):
    """Of calls of a tool."""
    called = {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": tool, "arguments": "{}"}} for _ in contents]}
    return [called, *({"role": "tool", "content": json.dumps(content)} for content in contents)]


def test_calls_have_the_names_that_are_offered():
    call = Call("HassTurnOn", {"name": "Hall Lamp", "domain": ["light"]})
    assert replies().reply(asked("lamp on"), TOOLS) == Reply((call,))
    prefixed = [f"intent__{name}" for name in TOOLS]
    found = replies().reply(asked("both"), prefixed)
    assert [one.name for one in found.calls] == ["intent__HassTurnOn", "intent__HassTurnOff"]


@pytest.mark.parametrize(("messages", "tools"), [
    (asked("lamp on"), ["web_search"]), (asked("hm"), TOOLS), ([], TOOLS),
    ([{"role": "user", "content": "lamp on"}, {"role": "assistant", "content": "Done."}], TOOLS),
    ([{"role": "user", "content": None}], TOOLS),
])
def test_what_is_not_for_the_house_or_not_sure_is_left_to_another(messages, tools):
    assert replies().reply(messages, tools) is None


def test_alone_it_asks_again_where_it_is_not_sure():
    found = replies().reply(asked("hm"), TOOLS, alone=True)
    assert (found.calls, found.text) == ((), "I did not understand that. Please say it again.")
    after = asked("hm", *results({"data": {"success": []}, "error": False}))  # calls of a correction
    assert replies().reply(after, TOOLS, alone=True) == Reply(text="Done.")
    assert replies().reply(after, TOOLS) is None


def test_the_tool_of_lists_has_its_name_of_each_version():
    for name in ("todo_get_items", "todo__get_items"):
        found = replies().reply(asked("what is on the list"), [*TOOLS, name])
        assert found == Reply((Call(name, {"todo_list": "Errands"}),))


def test_where_no_call_is_right_it_says_why():
    assert "cannot find" in replies().reply(asked("sauna on"), TOOLS).text
    assert "cannot do" in replies().reply(asked("pause"), TOOLS).text


@pytest.mark.parametrize("wrapped", [lambda data, _failed=False: data,
                                     lambda data, failed=False: {"data": data, "error": failed}])
def test_after_the_results_it_says_a_sentence_and_calls_nothing(wrapped):
    """As Home Assistant 2026.2 sends results, and as 2026.11 does."""
    done = {"response_type": "action_done", "data": {"success": [{"name": "Hall Lamp"}], "failed": []}}
    assert replies().reply(asked("lamp on", *results(wrapped(done))), TOOLS) == Reply(text="Done.")
    failed = {"error": "MatchFailedError", "error_text": "no such lamp"}
    found = replies().reply(asked("both", *results(wrapped(done), wrapped(failed, True))), TOOLS)
    assert "no such lamp" in found.text


@pytest.mark.dev
@pytest.mark.parametrize("wrapped", [lambda result: {"success": True, "result": result},
                                     lambda result: {"data": {"result": result}, "error": False}])
def test_questions_are_answered_by_the_results(wrapped):
    def answer(question, content, tool="homeassistant__GetLiveContext"):
        return replies().reply(asked(question, *results(content, tool=tool)), TOOLS).text

    context = wrapped(CONTEXT)
    assert answer("is the lamp on", context) == "Hall Lamp, big lamp is on."
    assert answer("how warm is it", context) == "Study Warmth is 21.5 °C."
    assert "cannot find" in answer("is the lamp on", "nothing")
    assert "Study Warmth is 21.5 °C" in answer("lamp on", context)  # asked by a correction: it says all states
    assert answer("is the lamp on", {"data": {"success": []}, "error": False}, "HassTurnOn") == "Done."
    items = wrapped([{"summary": "milk", "status": "needs_action"}, {"summary": "oats"}])
    assert answer("what is on the list", items, "todo_get_items") == "milk, oats"
    assert answer("what is on the list", wrapped([]), "todo__get_items") == "Nothing is on the list."
    time = wrapped({"time": "12:30:00", "date": "2026-05-01", "weekday": "Friday"})
    assert "12:30" in answer("what time is it", time, "GetDateTime")


def said_of(question, content, tool="homeassistant__GetLiveContext"):
    """The answer to a result whose text has this content, within bounds of memory and of calls."""
    call, _ = results("", tool=tool)
    messages = asked(question, call, {"role": "tool", "content": content})
    with bounded_memory(64 << 20), bounded_calls(2_000_000):
        return replies().reply(messages, TOOLS).text


BOMB = bomb("- names: {value}", "- names: {value}")


@pytest.mark.dev
@pytest.mark.parametrize("text", [
    BOMB, *(f"- names: Hall Lamp\n  state: {value}\n" for value in VALUES.values()),
    "- names: Hall Lamp\n- names: [", "- names: Hall Lamp\n---\n- names: Hall Lamp\n",
    "- names: " + "x" * (2 << 20), "- names: \ud800"], ids=[None, *VALUES, None, None, "large", None])
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_result_that_cannot_be_read_is_answered(text, is_wrapped):
    content = json.dumps({"success": True, "result": text}) if is_wrapped else text
    assert "cannot find" in said_of("is the lamp on", content)


def test_the_bomb_is_small():
    assert len(BOMB) < 500


@pytest.mark.parametrize(("odd", "answer"), [
    ("- names: [Hall Lamp]\n  state: x", "cannot find"), ("- names: {a: b}\n  state: x", "cannot find"),
    ("- names: Hall Lamp\n  domain: light\n  attributes: [1]\n  state: 2026-13-45", "Hall Lamp is 2026-13-45."),
    ("- names: Hall Lamp\n  domain: light\n  attributes: {unit_of_measurement: [a]}\n  state: on", "Hall Lamp is on."),
    ("- names: Hall Lamp\n  domain: light\n  state: [[a]]", "Hall Lamp is ."),
    ("- 5\n- names: Hall Lamp\n  domain: light\n  state: off", "Hall Lamp is off."),
])
def test_values_of_another_kind_are_left_out(odd, answer):
    assert answer in said_of("is the lamp on", f"Live Context:\n{odd}\n")


DEEP = "[" * 100_000


@pytest.mark.dev
@pytest.mark.parametrize(("question", "tool", "content", "answer"), [
    ("lamp on", "HassTurnOn", DEEP, "Done."), ("lamp on", "HassTurnOn", "9" * 5000, "Done."),
    ("lamp on", "HassTurnOn", '{"error": ' + "[" * 900 + "]" * 900 + "}", "error"),
    ("lamp on", "HassTurnOn", '{"error": {"code": 1}}', "error"),
    ("what time is it", "GetDateTime", '{"time": ' + "[" * 900 + "]" * 900 + "}", ""),
    ("what is on the list", "get_items", '[{"summary": ' + "[" * 900 + "]" * 900 + "}]", ""),
    ("is the lamp on", "GetLiveContext", None, "cannot find"), ("is the lamp on", "GetLiveContext", 5, "cannot find"),
])
def test_results_in_odd_json_are_answered(question, tool, content, answer):
    assert answer in said_of(question, content, tool)
