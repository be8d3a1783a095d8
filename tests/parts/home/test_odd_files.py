"""Every file that a command of home reads, in every form that a person does not mean: each ends in one sentence."""

import json
import os

import pytest
from bounds import bounded_memory
from click.testing import CliRunner
from houses import write_house
from odd_yaml import VALUES, bomb

from edgetune.cli import cli
from edgetune.parts.home.house import Facts, write_facts

pytestmark = pytest.mark.timeout(60)  # for a pipe that is waited for
ROOM = 512 << 20  # bytes: modules are loaded within it
OF_YAML = {
    "rows": ["rows", "{file}", "-o", "{out}"],
    "train": ["train", "{file}", "-o", "{out}"],
    "update": ["update", "{house}", "{file}"],
}
OF_ROWS = {
    "own of rows": ["rows", "{entities}", "-o", "{out}", "--own", "{file}"],
    "own of train": ["train", "{entities}", "-o", "{out}", "--own", "{file}"],
    "own of update": ["update", "{house}", "--own", "{file}"],
    "sentences": ["eval", "{house}", "{file}", "--save", "{out}"],
}
OF_HOUSES = {
    "house to update": ["update", "{file}"],
    "house to ask": ["eval", "{file}", "{sentences}", "--save", "{out}"],
}


def make_special(path, kind):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("device", "dangling link"):
        path.symlink_to("/dev/zero" if kind == "device" else "nothing")
    elif kind != "missing":
        path.write_bytes({"empty": b"", "not UTF-8": b"\xff", "null bytes": bytes(99)}[kind])


KINDS = ["missing", "folder", "pipe", "device", "dangling link", "empty", "not UTF-8", "null bytes"]


@pytest.fixture
def places(tmp_path):
    """Paths that a command may name. The house cannot answer: nothing here comes that far."""
    house = tmp_path / "house"
    house.mkdir()
    (house / "entities.yaml").write_bytes(write_house(tmp_path).read_bytes())
    write_facts(house, Facts("en", 200, 0, "minilm", 200))
    (tmp_path / "sentences.jsonl").write_text('{"sentence": "turn on the lamp"}\n')
    return {"house": house, "entities": tmp_path / "house.yaml", "sentences": tmp_path / "sentences.jsonl",
            "out": tmp_path / "out", "file": tmp_path / "given"}


def refusal(command, places):
    """The sentence in which a command ends; it leaves nothing."""
    before = sorted(places["out"].parent.rglob("*"))
    words = ["home", *(word.format(**places) for word in command)]
    with bounded_memory(ROOM):
        done = CliRunner().invoke(cli, words)
    assert isinstance(done.exception, SystemExit), (words, done.exception)
    assert done.exit_code in (1, 2), done.output
    said = [line for line in done.stderr.splitlines() if line.startswith("edgetune: ")]
    assert len(said) == 1 == done.stderr.count("\n"), done.stderr
    assert sorted(places["out"].parent.rglob("*")) == before
    return said[0]


@pytest.mark.dev
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [*OF_YAML, *OF_ROWS, *OF_HOUSES])
def test_a_file_that_is_none(places, position, kind):
    if kind == "empty" and position.startswith("own"):
        pytest.skip("nobody has to have own sentences")
    make_special(places["file"], kind)
    said = refusal({**OF_YAML, **OF_ROWS, **OF_HOUSES}[position], places)
    assert "given" in said


ENTITY = "entities:\n- {name: Lamp, id: light.lamp}\n"
LAMP = "entities:\n- id: light.lamp\n  name: Lamp\n"
WHERE = {"whole": "@", "areas": ENTITY + "areas: @\n", "name": "entities:\n- id: light.lamp\n  name: @\n",
         "aliases": LAMP + "  aliases: @\n", "class": LAMP + "  attributes: {device_class: @}\n",
         "key that is not read": ENTITY + "note: @\n"}
ODD_YAML = {f"{where}: {name}": text.replace("@", value) for where, text in WHERE.items()
            for name, value in VALUES.items()}
SHAPES = {
    "aliases that are a number": "aliases: 5", "aliases that are a text": "aliases: big lamp",
    "aliases in aliases": "aliases: [[a]]", "a list as a class": "attributes: {device_class: [a]}",
    "a list of attributes": "attributes: [a]", "a text of attributes": "attributes: a",
    "a list as an area": "area: [a]",
    "a mapping as a device": "device: {a: b}", "no such area": "area: attic", "a number of digits": "area: " + "9" * 90,
}
ODD_YAML |= {name: f"entities:\n- name: Lamp\n  id: light.lamp\n  {line}\n" for name, line in SHAPES.items()}
ODD_YAML |= {
    "bomb of names": "entities:\n" + bomb("- name: {value}", "- name: {value}"),
    "bomb of aliases": "entities:\n" + bomb("- {{name: a, id: light.a, aliases: {value}}}",
                                            "- {{name: a, id: light.a, aliases: {value}}}"),
    "a number": "5", "a list": "- a\n", "no name": "entities: [{id: light.a}]", "a number as an id":
    "entities: [{name: a, id: 5}]", "a list as an id": "entities: [{name: a, id: [light.a]}]",
    "a list as an area's id": f"areas: [{{name: a, id: [b]}}]\n{ENTITY}", "a mapping of a floor":
    f"areas: [{{name: a, floor: {{b: c}}}}]\n{ENTITY}", "a text as areas": f"areas: abc\n{ENTITY}",
    "a text as a device": f"devices: [a]\n{ENTITY}", "a date as a name": "entities: [{name: 2026-13-45}]",
}


@pytest.mark.dev
@pytest.mark.parametrize("name", ODD_YAML)
@pytest.mark.parametrize("position", OF_YAML)
def test_entities_in_odd_yaml(places, position, name):
    places["file"].write_text(ODD_YAML[name])
    assert "given" in refusal(OF_YAML[position], places)


@pytest.mark.parametrize("name", ["bomb of names", "3000 brackets", "a date"])
def test_a_house_with_odd_entities(places, name):
    text = {"bomb of names": ODD_YAML["bomb of names"], "3000 brackets": "[" * 3000, "a date": "2026-13-45"}[name]
    (places["house"] / "entities.yaml").write_text(text)
    for command in (["update", "{house}", "{entities}"], ["eval", "{house}", "{sentences}"]):
        assert "entities.yaml" in refusal(command, places)


def call(**arguments):
    return {"sentence": "x", "calls": [{"name": "HassTurnOn", "arguments": arguments}]}


ODD_ROWS = {
    "brackets": "[" * 3000, "a sentence in brackets": '{"sentence": ' + "[" * 3000 + "]" * 3000 + "}",
    "digits": '{"sentence": ' + "9" * 5000 + "}", "a list": "[]", "no sentence": "{}", "not closed": '{"sentence": "a',
    "half a pair of surrogates": '{"sentence": "\\ud800 on", "calls": []}',
    "blank": '{"sentence": " "}', "calls that are a text": '{"sentence": "x", "calls": "on", "accepted": 5}',
    "calls that are numbers": '{"sentence": "x", "calls": [5], "accepted": [[5]]}',
    "an unknown tool": '{"sentence": "x", "calls": [{"name": "Explode"}], "accepted": [{"name": "Explode"}]}',
    "a tool that is a list": '{"sentence": "x", "calls": [{"name": ["a"]}], "accepted": [[{"name": ["a"]}]]}',
    "arguments that are a list": '{"sentence": "x", "calls": [{"name": "HassTurnOn", "arguments": ["a"]}], '
                                 '"accepted": [[{"name": "HassTurnOn", "arguments": ["a"]}]]}',
}
ODD_CALLS = {name: json.dumps(row) for name, row in {
    "an unknown argument": call(colour="red"), "an entity that is a list": call(name=["a", "b"]),
    "an entity that is a mapping": call(name={"a": 1}), "half a pair": call(name="\ud800"),
    "an area that is a number": call(area=5), "a domain in a list": call(domain=[["light"]])}.items()}


@pytest.mark.dev
@pytest.mark.parametrize("name", [*ODD_ROWS, *ODD_CALLS])
@pytest.mark.parametrize("position", OF_ROWS)
def test_odd_rows(places, position, name):
    if position == "sentences" and name in ODD_CALLS:
        pytest.skip("eval reads no calls")
    places["file"].write_text({**ODD_ROWS, **ODD_CALLS}[name])
    assert "given" in refusal(OF_ROWS[position], places)


def test_no_own_sentence_is_written_over(places):
    """A file that exists is refused before anything is read, also where it is the one to read."""
    for name in ("sentences", "entities"):
        kept = places[name].read_bytes()
        commands = (["eval", "{house}", f"{{{name}}}", "--save", f"{{{name}}}"], ["rows", "{entities}", "-o",
                                                                                  f"{{{name}}}"])
        for command in commands:
            assert "exists; name another" in refusal(command, places)
        assert places[name].read_bytes() == kept


def test_a_house_that_exists_is_refused_before_the_entities_are_read(places):
    assert "exists; name another" in refusal(["train", "{file}", "-o", "{house}", "--encoder", "none"], places)
