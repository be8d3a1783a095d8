"""edgetune.parts.home.source: a house answers Home Assistant's requests, and the model the rest."""

import json
import string
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from bounds import bounded_memory
from encoders import WORDS, tiny_bert, write_encoder
from odd_yaml import bomb
from services import open_service
from tiny import write_tiny

from edgetune.adapters.store import FILE, read_artifact, save_artifact
from edgetune.daemon.learning.recall import Recall
from edgetune.daemon.sources import AskedQuestion
from edgetune.errors import EdgetuneError, MismatchError, NotFoundError, UsageError
from edgetune.formats.gguf import open_gguf
from edgetune.parts.home.completions import fields_of, line_of, wish_of_fields
from edgetune.parts.home.entities import home_of
from edgetune.parts.home.house import ENTITIES, Facts, write_facts
from edgetune.parts.home.recipe import DECODER
from edgetune.parts.home.replies import Reply
from edgetune.parts.home.source import HouseSource, written
from edgetune.parts.home.tools import Call, Target
from edgetune.parts.home.wishes import Wish
from edgetune.runs.train import train
from edgetune.serving.completion import MODEL
from edgetune.serving.tool_calls import CallForm, join

LAMP = Target("Hall Lamp", domain="light")
CALL = {"name": "Hall Lamp", "domain": ["light"]}
ROWS = [{"prompt": f"turn {word} {letter}", "completion": json.dumps(fields_of(Wish(tool, LAMP)))}
        for word, tool in (("on", "HassTurnOn"), ("off", "HassTurnOff")) for letter in string.ascii_lowercase]
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
         for name in ("intent__HassTurnOn", "intent__HassTurnOff", "homeassistant__GetLiveContext")]
OTHER = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """The folder of a house that knows two commands, and is sure of all."""
    folder = tmp_path_factory.mktemp("house")
    entities = {"entities": [{"name": "Hall Lamp", "id": "light.hall"}]}
    (folder / ENTITIES).write_text(yaml.safe_dump(entities))
    encoder = write_encoder(folder / "encoder.gguf", tiny_bert(), WORDS)
    train(encoder, ROWS, folder / "encoder", "none", rank=4, threads=1, epochs=6, lr=3e-3)
    base = open_gguf(encoder)
    found = read_artifact(folder / "encoder", base)
    sure = {"rows": 52, "levels": [[0.0, 1.0, 1.0]], "certainty": 0.95}
    facts = {key: value for key, value in found.facts.items() if key != "likeness"}
    save_artifact(folder / "encoder" / FILE, replace(found, facts={**facts, "sureness": sure, "kinds": sure}), base)
    write_facts(folder, Facts("en", 200, 0, str(encoder), len(ROWS)))
    return folder


@pytest.fixture
def service(tmp_path, house):
    with open_service(tmp_path, context=512, home=str(house)) as service:
        yield service


@pytest.fixture(scope="module")
def written_house(tmp_path_factory):
    """The folder of a house whose two commands the daemon's model learned."""
    folder = tmp_path_factory.mktemp("written")
    home = home_of({"entities": [{"name": "Hall Lamp", "id": "light.hall"}]}, "house")
    (folder / ENTITIES).write_text(yaml.safe_dump({"entities": [{"name": "Hall Lamp", "id": "light.hall"}]}))
    rows = [{"prompt": row["prompt"], "completion": line_of(wish_of_fields(json.loads(row["completion"])), home)}
            for row in ROWS]
    model = write_tiny(folder / "tiny.gguf", formats="Q8_0")
    train(model, rows, folder / DECODER, "none", rank=16, threads=1, epochs=8, lr=1e-2, anchors=0)
    write_facts(folder, Facts("en", 200, 0, "", len(ROWS), decoder=str(model)))
    return folder


def asked(text, *more):
    return [{"role": "user", "content": text}, *more]


def calls(service, answer):
    names = {tool["function"]["name"] for tool in TOOLS}
    text, pieces = service.served.call_reader(names).push(answer.text(), last=True)
    return text, [(call.name, json.loads(call.arguments)) for call in join(pieces)]


@pytest.mark.dev
def test_commands_become_calls_and_results_a_sentence(service):
    answer = service.chat(asked("turn on c"), TOOLS)
    assert answer.source == HouseSource.name
    assert calls(service, answer) == ("", [("intent__HassTurnOn", CALL)])
    called = {"role": "assistant", "content": "", "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "intent__HassTurnOn", "arguments": CALL}}]}
    done = {"role": "tool", "tool_call_id": "a", "content": json.dumps({"data": {"success": []}, "error": False})}
    after = service.chat(asked("turn on c", called, done), TOOLS)
    assert (after.source, calls(service, after)) == (HouseSource.name, ("Done.", []))
    assert service.device()["answered"] == {HouseSource.name: 2}


def test_a_result_that_stands_for_gigabytes_is_answered(service):
    text = bomb("- names: {value}", "- names: {value}")
    called = {"role": "assistant", "content": "", "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "homeassistant__GetLiveContext", "arguments": {}}}]}
    result = {"role": "tool", "tool_call_id": "a", "content": text}
    assert service.chat(asked("turn on c"), TOOLS).source == HouseSource.name  # what it needs once is there
    with bounded_memory(64 << 20):
        answer = service.chat(asked("turn on c", called, result), TOOLS)
    assert answer.source == HouseSource.name
    assert "cannot find" in answer.text()


@pytest.mark.dev
def test_the_daemons_model_answers_for_a_house_with_its_decoder(tmp_path, written_house):
    with open_service(tmp_path, context=512, home=str(written_house)) as service:
        answers = {word: service.chat(asked(f"turn {word} c"), TOOLS) for word in ("on", "off")}
        assert {answer.source for answer in answers.values()} == {HouseSource.name}
        assert [calls(service, answers["on"]), calls(service, answers["off"])] == [
            ("", [("intent__HassTurnOn", CALL)]), ("", [("intent__HassTurnOff", CALL)])]
        assert service.adapters.ids() == []  # the house's own is none that a request may name
        with pytest.raises(NotFoundError):
            service.chat(asked("turn on c"), model="tiny:house")


def test_a_house_of_another_model_is_refused(tmp_path, written_house):
    write_tiny(tmp_path / "tiny.gguf", formats="Q8_0", seed=7)
    with pytest.raises(MismatchError), open_service(tmp_path, context=512, home=str(written_house)):
        pass


def test_a_prompt_that_is_longer_than_the_context_is_not_read(service):
    system = {"role": "system", "content": "Lamps: " + "hall, " * 1000}
    answer = service.chat([system, *asked("turn on c")], TOOLS)
    assert calls(service, answer) == ("", [("intent__HassTurnOn", CALL)])
    assert answer.prompt_tokens < 20
    with pytest.raises(EdgetuneError, match="context of 512"):
        service.chat([system, *asked("turn on c")], OTHER)


def test_several_calls_are_written_as_the_model_would(service):
    reply = Reply((Call("intent__HassTurnOn", CALL), Call("intent__HassTurnOff", {})))
    reader = service.served.call_reader({call.name for call in reply.calls})
    text, pieces = reader.push(written(reply, service.served.call_form), last=True)
    assert text.strip() == ""
    assert [(call.name, json.loads(call.arguments)) for call in join(pieces)] == [
        ("intent__HassTurnOn", CALL), ("intent__HassTurnOff", {})]


@pytest.mark.dev
@pytest.mark.parametrize(("tools", "options"), [(None, {}), (OTHER, {}), (TOOLS, {"model": "tiny"}),
                                                (TOOLS, {"grammar": 'root ::= "x"'}), (TOOLS, {"max_tokens": 1})])
def test_other_requests_are_the_models(service, tools, options):
    answer = service.chat(asked("turn on c"), tools, **{"max_tokens": 8, **options})
    answer.text()
    assert answer.source == MODEL


@pytest.mark.parametrize(("adapter", "calls_tools", "alone"), [
    (None, False, True), ("learned", False, False), (None, True, False)])
def test_it_answers_alone_where_the_model_cannot_call(adapter, calls_tools, alone):
    told = []
    replies = SimpleNamespace(reply=lambda _content, alone: told.append(alone))
    source = HouseSource(replies, SimpleNamespace(calls_tools=calls_tools), SimpleNamespace(serving=adapter), ["tiny"],
                         lambda *_: False, CallForm())
    assert source.answer(AskedQuestion({"messages": asked("turn on c"), "tools": TOOLS}, "turn on c", "tiny")) is None
    assert told == [alone]


def test_a_correction_comes_first(service):
    said = service.chat(asked("turn on c"), TOOLS).text()
    service.feedback.add(messages=asked("turn on c"), tools=TOOLS, answer=said, correction="The lamp is broken.")
    answer = service.chat(asked("turn on c"), TOOLS)
    assert (answer.source, answer.text()) == (Recall.name, "The lamp is broken.")


def test_what_cannot_be_a_house_is_refused(tmp_path, house):
    with pytest.raises(NotFoundError, match="is no house"), open_service(tmp_path, home=str(tmp_path)):
        pass
    from edgetune.daemon.options import DaemonConfig
    from edgetune.daemon.service import Service
    config = DaemonConfig(state=str(tmp_path / "other"), home=str(house))
    with pytest.raises(UsageError, match=r"home is .* is an encoder itself"), Service(house / "encoder.gguf", config):
        pass
