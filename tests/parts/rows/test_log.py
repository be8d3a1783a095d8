"""Rows from a log of answers: only confirmed ones, and no calls that today's tools do not take."""

import json

import pytest
from commands import run
from json_lines import write_lines

from edgetune.data import rows as supervised
from edgetune.errors import DataError
from edgetune.parts.rows.log import make_from_log
from edgetune.parts.rows.options import LogOptions


def tool(name, **properties):
    return {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties)}}}


def call(name, **arguments):
    return {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}]}


def chat(asked, answer, tools=None, **keys):
    return {"messages": [{"role": "user", "content": asked}, answer], **({"tools": tools} if tools else {}), **keys}


OLD = [tool("lamp", room="string")]
NEW = [tool("lamp", room="string"), tool("heat", level="integer")]


def made(path, **options):
    return make_from_log(path, LogOptions(**options))


def text(answer):
    return {"role": "assistant", "content": answer}


def test_only_confirmed_answers_are_kept(tmp_path):
    path = write_lines(tmp_path / "log.jsonl", [
        {"prompt": "a", "completion": "1", "rating": "up"}, {"prompt": "b", "completion": "2", "rating": "down"},
        {"prompt": "c", "completion": "3"}, {"prompt": "d", "completion": "4", "rating": None},
        {"prompt": "e", "completion": "5", "rating": 1}, {"prompt": "e", "completion": "5", "rating": 1},
        {"prompt": "a", "completion": "one", "rating": "good"}, {"prompt": "f", "completion": "", "rating": "up"}])
    found = made(path)
    assert found.rows == [{"prompt": "e", "completion": "5"}, {"prompt": "a", "completion": "one"}]
    assert dict(found.dropped) == {"was not confirmed": 3, "repeats an earlier row": 1,
                                   "is answered otherwise by a later record": 1,
                                   "holds no question with an answer": 1}
    assert found.notes == ["line 8 of log.jsonl: the completion is empty"]


def test_requests_with_responses(tmp_path):
    request = {"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "one"},
                                          text("1"), {"role": "user", "content": "two"}], "temperature": 0}
    response = {"id": "x", "choices": [{"index": 0, "message": {**text("2"), "refusal": None}}]}
    path = write_lines(tmp_path / "log.jsonl", [{"request": request, "response": response, "ok": "yes"},
                                                {"request": request, "response": {}, "ok": "yes"}])
    found = made(path, confirmed="ok")
    assert found.rows == [{"messages": [*request["messages"][:2], {**text("1"), "weight": 0},
                                        request["messages"][3], text("2")]}]
    assert supervised.check_learnable(found.rows[0]) == "messages"
    assert found.dropped["holds no question with an answer"] == 1


def test_calls_that_the_newest_tools_do_not_take_are_dropped_and_counted(tmp_path):
    path = write_lines(tmp_path / "log.jsonl", [
        chat("hall", call("lamp", room="hall"), OLD, confirmed=True),
        chat("attic", call("light", room="attic"), [tool("light", room="string")], confirmed=True),
        chat("warm", call("heat", degrees=20), [tool("heat", degrees="integer")], confirmed=True),
        chat("hi", text("Hello."), OLD, confirmed=True),
        chat("cold", call("heat", level=3), NEW, confirmed=False),
        chat("warmer", call("heat", level=5), NEW, confirmed=True)])
    found = made(path)
    assert [row["messages"][0]["content"] for row in found.rows] == ["hall", "hi", "warmer"]
    assert all(row["tools"] == NEW for row in found.rows)
    assert dict(found.dropped) == {"calls what today's tools do not take": 2, "was not confirmed": 1}
    assert found.notes[0].startswith("the first such call: messages[1] calls 'light'")
    assert found.notes[1] == "4 confirmed records had other tools than today's, and were checked against those"


def test_today_s_tools_may_be_named(tmp_path):
    path = write_lines(tmp_path / "log.jsonl", [chat("hall", call("lamp", room="hall"), NEW, confirmed=True),
                                                chat("warm", call("heat", level=20), NEW, confirmed=True)])
    (tmp_path / "tools.json").write_text(json.dumps(OLD))
    found = made(path, tools=str(tmp_path / "tools.json"))
    assert [row["tools"] for row in found.rows] == [OLD]
    (tmp_path / "tools.json").write_text("{}")
    with pytest.raises(DataError, match="holds no list of tools"):
        made(path, tools=str(tmp_path / "tools.json"))


def test_the_command(tmp_path):
    path = write_lines(tmp_path / "log.jsonl", [{"prompt": "a", "completion": "1", "confirmed": True},
                                                {"prompt": "b", "completion": "1", "confirmed": False}])
    report = json.loads(run("data", "make", "log", path, "-o", tmp_path / "rows.jsonl", "--json"))
    assert (report["read"], report["rows"], report["dropped"]) == (2, 1, {"was not confirmed": 1})
    unsaid = write_lines(tmp_path / "unsaid.jsonl", [{"prompt": "a", "completion": "1"}])
    assert "no record of unsaid.jsonl says whether its answer was confirmed" in run(
        "data", "make", "log", unsaid, "-o", tmp_path / "new.jsonl", code=1)
    assert not (tmp_path / "new.jsonl").exists()
