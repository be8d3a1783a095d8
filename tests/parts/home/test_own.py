"""edgetune.parts.home.own: a person's own rows, and what a daemon was told, which becomes some."""

import json
import shutil

import pytest
from commands import run
from daemons import daemon
from houses import house

from edgetune.daemon.client import Client
from edgetune.data.calls import CallError
from edgetune.errors import DataError
from edgetune.parts.home.own import own_rows
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


TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {
    "name": {"type": "string"}}}}} for name in ("intent__HassTurnOn", "intent__HassTurnOff")]
OTHERS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}]
WRITTEN = '<tool_call>\n{"name": "intent__HassTurnOff", "arguments": {"name": "Hall Lamp"}}\n</tool_call>'
OFF_CALLS = [{"name": "HassTurnOff", "arguments": {"name": "Hall Lamp"}}]


def piece(asked, said, tools=TOOLS, state="new", **answer):
    system = {"role": "system", "content": "You are a voice assistant."}
    messages = [system, {"role": "user", "content": asked}, {"role": "assistant", "content": said, **answer}]
    return {"state": state, "row": {"messages": messages, "tools": tools}}


def test_corrections_become_sentences():
    on = [{"name": "HassTurnOn", "arguments": {"name": "Jukebox"}}]
    called = {"tool_calls": [{"type": "function", "function": on[0]}]}
    found = own_rows([piece(" movie time ", WRITTEN), piece("Movie time", "older"), piece("movie time!", "older still"),
                      piece("music", "", **called), piece("oh dear", "What is wrong?")])
    assert found == [{"sentence": "movie time", "calls": OFF_CALLS}, {"sentence": "music", "calls": on},
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
    assert json.loads(out.read_text()) == {"sentence": "movie time", "calls": OFF_CALLS}
    assert len(read_own(out, house(tmp_path))) == 1
