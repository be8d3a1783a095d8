"""Rows from intents and values, compared with all sentences written out by hand."""

import json

import pytest
from commands import run

from edgetune.errors import EdgetuneError
from edgetune.parts.rows.options import TemplateOptions
from edgetune.parts.rows.templates import make_from_templates

SPEC = {
    "values": {"room": ["kitchen", "hall"], "device": {"lamp": "light", "fan": "fan"},
               "level": {"from": 0, "to": 100, "step": 50}},
    "intents": {
        "on": {"templates": ["turn on the {device} in the {room}", "{room} {device} on", "[please |]start the {room} "
                             "{device}"],
               "answer": {"device": "{device}", "room": "{room}", "action": "on"}},
        "dim": {"templates": ["dim the {room} to {level}"], "answer": {"room": "{room}", "value": "{level}"}},
        "bye": {"templates": ["bye"], "answer": "Good bye."}}}


def write(folder, **keys):
    path = folder / "spec.json"
    path.write_text(json.dumps({**SPEC, **keys}))
    return path


def made(path, **options):
    return make_from_templates(path, TemplateOptions(**{"cap": 0, "test_count": 0, **options}))


def test_all_sentences_with_their_answers(tmp_path):
    found = made(write(tmp_path), count=1000)
    rows = {row["prompt"]: row["completion"] for row in found.rows}
    expected = {"bye": "Good bye."}
    for room in ("kitchen", "hall"):
        for said, device in (("lamp", "light"), ("fan", "fan")):
            answer = f'{{"device":"{device}","room":"{room}","action":"on"}}'
            expected |= dict.fromkeys((f"turn on the {said} in the {room}", f"{room} {said} on",
                                       f"start the {room} {said}", f"please start the {room} {said}"), answer)
        for level in (0, 50, 100):
            expected[f"dim the {room} to {level}"] = f'{{"room":"{room}","value":{level}}}'
    assert rows == expected
    assert len(found.rows) == len(expected) == 23
    assert found.notes == ["there are 23 different sentences, 1000 were wanted"]


def test_the_seed_decides(tmp_path):
    path = write(tmp_path)
    assert made(path, count=10, seed=3).rows == made(path, count=10, seed=3).rows
    assert made(path, count=10, seed=3).rows != made(path, count=10, seed=4).rows


def test_held_out_templates_are_never_learned(tmp_path):
    forms = [f"{word} the {{device}} of the {{room}}" for word in ("start", "switch on", "light", "use", "activate")]
    path = write(tmp_path, intents={"on": {"templates": forms, "answer": "on {device} {room}"}})
    found = made(path, count=100, held_out=0.4, test_count=50)

    def words(rows):
        return {row["prompt"].split(" the ")[0] for row in rows}

    assert (len(found.rows), len(found.held_out)) == (12, 8)
    assert (len(words(found.rows)), len(words(found.held_out))) == (3, 2)
    assert not words(found.rows) & words(found.held_out)
    few = made(write(tmp_path), count=100, held_out=0.4, test_count=50)
    assert few.notes[-1] == "no test rows of dim, bye: an intent needs 3 templates for them"


def test_shares_follow_the_number_of_sentences_up_to_the_cap_or_a_weight(tmp_path):
    values = {"n": {"from": 1, "to": 1000}, "m": {"from": 1, "to": 100}}
    intents = {"many": {"templates": ["many {n}"], "answer": "x"}, "few": {"templates": ["few {m}"], "answer": "y"}}

    def share(cap, **keys):
        changed = {name: {**intent, **keys.get(name, {})} for name, intent in intents.items()}
        found = made(write(tmp_path, values=values, intents=changed), count=110, cap=cap)
        return sum(row["completion"] == "y" for row in found.rows)

    assert share(0) == 10
    assert share(100) == 55
    assert share(0, few={"weight": 1}, many={"weight": 10}) == 10


def test_a_sentence_with_two_answers_is_learned_once(tmp_path):
    intents = {"a": {"templates": ["lamp", "light"], "answer": "1"}, "b": {"templates": ["lamp"], "answer": "2"},
               "c": {"templates": ["light"], "answer": "1"}}
    found = made(write(tmp_path, intents=intents), count=10)
    assert len(found.rows) == 2
    assert dict(found.dropped) == {"asks the same as another template, with another answer": 1,
                                   "repeats another template's sentence": 1}


def test_more_sentences_than_a_list_can_have(tmp_path):
    slots = {letter: {"from": 0, "to": 9999} for letter in "abcdefgh"}
    said = " ".join(f"{{{letter}}}" for letter in slots)
    found = made(write(tmp_path, values=slots, intents={"all": {"templates": [said], "answer": "{h}"}}), count=50)
    assert len({row["prompt"] for row in found.rows}) == 50
    assert all(row["completion"] == row["prompt"].split()[-1] for row in found.rows)


def test_a_value_with_braces_stays_as_it_is(tmp_path):
    found = made(write(tmp_path, values={"x": ["{y}"], "y": ["no"]},
                       intents={"a": {"templates": ["say {x} and {y}"], "answer": "{x}"}}))
    assert found.rows == [{"prompt": "say {y} and no", "completion": "{y}"}]


@pytest.mark.parametrize(("keys", "said"), [
    ({"intents": {}}, "has no intents"),
    ({"intents": {"a": {"templates": ["x {where}"], "answer": "y"}}}, "has the slot {where}"),
    ({"intents": {"a": {"templates": ["x"], "answer": ["{room}"]}}}, "the answer of the intent a needs {room}"),
    ({"intents": {"a": {"templates": [7], "answer": "y"}}}, "a template of the intent a is 7"),
    ({"intents": {"a": {"templates": ["x"]}}}, "the intent a lacks the field 'answer'"),
    ({"intents": {"a": {"templates": ["x"], "answer": "y", "weigth": 2}}}, "'weigth'"),
    ({"values": {"room": []}}, "the values of room are []"),
    ({"values": {"room": {"from": 0, "to": 1e9}}}, "the range of room is"),
    ({"values": {"room": {"from": 0, "to": 10**9}}}, "the range of room has 1000000001 numbers"),
])
def test_mistakes_are_named(tmp_path, keys, said):
    with pytest.raises(EdgetuneError) as error:
        made(write(tmp_path, **keys))
    assert said in error.value.what


def test_the_command_writes_both_files_or_none(tmp_path, tiny_llama):
    pytest.importorskip("yaml")
    import yaml
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**SPEC, "system": "You run a home."}))
    rows, test = tmp_path / "rows.jsonl", tmp_path / "test.jsonl"
    printed = run("data", "make", "templates", tmp_path / "spec.yaml", "-o", rows, "--test", test, "--held-out", "34%")
    assert printed.startswith(f"19 rows in {rows}, of 23 read\n4 test rows in {test}\n") or \
        printed.startswith(f"15 rows in {rows}, of 23 read\n8 test rows in {test}\n")
    assert not run("data", "check", rows, tiny_llama, "--eval", test).startswith("not ready")
    assert json.loads(rows.read_text().splitlines()[0])["messages"][0] == {"role": "system", "content":
                                                                           "You run a home."}
    rows.unlink()
    assert "test.jsonl exists" in run("data", "make", "templates", tmp_path / "spec.yaml", "-o", rows, "--test", test,
                                      code=2)
    assert not rows.exists()
    report = json.loads(run("data", "make", "templates", tmp_path / "spec.yaml", "-o", rows, "--json"))
    assert (report["rows"], report["held_out"], report["test"], report["dropped"]) == (23, 0, None, {})
