"""edgetune.parts.home.own: what a daemon was told becomes sentences of a house, which learns them."""

import json
import shutil

import pytest
from commands import run
from daemons import daemon
from houses import house

from edgetune.daemon.client import Client
from edgetune.data.calls import CallError
from edgetune.parts.home.own import own_rows
from edgetune.parts.home.rows import read_own

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {
    "name": {"type": "string"}}}}} for name in ("intent__HassTurnOn", "intent__HassTurnOff")]
OTHERS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}]
WRITTEN = '<tool_call>\n{"name": "intent__HassTurnOff", "arguments": {"name": "Hall Lamp"}}\n</tool_call>'
OFF = [{"name": "HassTurnOff", "arguments": {"name": "Hall Lamp"}}]


def piece(asked, said, tools=TOOLS, state="new", **answer):
    system = {"role": "system", "content": "You are a voice assistant."}
    messages = [system, {"role": "user", "content": asked}, {"role": "assistant", "content": said, **answer}]
    return {"state": state, "row": {"messages": messages, "tools": tools}}


def test_corrections_become_sentences():
    on = [{"name": "HassTurnOn", "arguments": {"name": "Jukebox"}}]
    called = {"tool_calls": [{"type": "function", "function": on[0]}]}
    found = own_rows([piece(" movie time ", WRITTEN), piece("Movie time", "older"), piece("movie time!", "older still"),
                      piece("music", "", **called), piece("oh dear", "What is wrong?")])
    assert found == [{"sentence": "movie time", "calls": OFF}, {"sentence": "music", "calls": on},
                     {"sentence": "oh dear", "calls": []}]


def test_what_is_no_sentence_of_a_house_is_left_out():
    messages = [{"role": role, "content": "off"} for role in ("user", "tool", "assistant")]
    after_a_result = {"state": "new", "row": {"tools": TOOLS, "messages": messages}}
    others = [piece("movie time", WRITTEN, OTHERS), piece("movie time", WRITTEN, None), after_a_result]
    others += [piece("movie time", WRITTEN, state="withdrawn"), {"state": "new", "row": None}, piece("x", "")]
    assert own_rows(others) == []


def test_a_call_that_is_no_json_is_refused():
    with pytest.raises(CallError, match="the correction of 'movie time' has a call that is not JSON"):
        own_rows([piece("movie time", "<tool_call>{off}</tool_call>")])


def test_a_daemons_corrections_are_learned(tmp_path, tiny_llama):
    model = shutil.copyfile(tiny_llama, tmp_path / "tiny.gguf")
    out = tmp_path / "own.jsonl"
    with daemon(model, tmp_path / "state") as running, Client(running.url) as client:
        asked = {"messages": piece("movie time", "")["row"]["messages"][:2], "tools": TOOLS}
        client.post("/v1/feedback", {**asked, "correction": WRITTEN})
        said = json.loads(run("home", "corrections", "-o", out, "--url", running.url, "--json"))
    assert said["rows"] == 1
    assert json.loads(out.read_text()) == {"sentence": "movie time", "calls": OFF}
    assert len(read_own(out, house(tmp_path))) == 1
