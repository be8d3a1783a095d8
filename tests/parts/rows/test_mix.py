"""edgetune data mix: shares, templates, examples, and what is left out, by hand-made rows."""

import json
from collections import Counter

import pytest
from bounds import bounded_memory
from commands import run
from json_lines import write_lines
from odd_yaml import VALUES, bomb

from edgetune.data.check import findings
from edgetune.data.facts import inspect
from edgetune.errors import EdgetuneError
from edgetune.parts.rows.draw import proportional
from edgetune.parts.rows.mix import mix

pytest.importorskip("yaml")
pytest.importorskip("rapidfuzz")
LABELS = ("weather", "music", "lamp")
THINGS = ["apple", "bridge", "candle", "desk", "engine", "forest", "garden", "hammer", "island",
          "jacket", "kettle", "ladder"]


@pytest.fixture
def folder(tmp_path):
    labelled = [{"prompt": f"say something about the {thing} number {i}", "completion": LABELS[i % 3]}
                for i, thing in enumerate(THINGS * 5)]
    sums = [{"question": f"What is {i} plus {thing}?", "answer": str(i)} for i, thing in enumerate(THINGS * 2)]
    write_lines(tmp_path / "labels.jsonl", labelled)
    write_lines(tmp_path / "sums.jsonl", sums)
    write_lines(tmp_path / "general.jsonl", [{"prompt": f"tell me of {thing}s", "completion": f"A {thing} is a thing."}
                                             for thing in THINGS])
    return tmp_path


def spec(folder, **keys):
    path = folder / "mix.json"
    sources = {"labels": {"rows": "labels.jsonl", "options": True,
                          "templates": ["{prompt}", "[Sort|Class] this: {prompt}\nOne of {options}"],
                          "inverted": ["Write a sentence about {completion}"]},
               "sums": {"rows": "sums.jsonl"}}
    path.write_text(json.dumps({"sources": sources, "near": 1, **keys}))
    return path


def asked(row):
    return row["messages"][-2]["content"]


@pytest.mark.parametrize(("total", "sizes", "cap", "weights", "found"), [
    (90, {"a": 60, "b": 30}, 0, {}, {"a": 60, "b": 30}),
    (30, {"a": 60, "b": 30}, 0, {}, {"a": 20, "b": 10}),
    (30, {"a": 6000, "b": 30}, 60, {}, {"a": 20, "b": 10}),
    (30, {"a": 6000, "b": 5}, 5, {}, {"a": 25, "b": 5}),
    (500, {"a": 60, "b": 30}, 0, {}, {"a": 60, "b": 30}),
    (30, {"a": 60, "b": 60}, 0, {"a": 1, "b": 2}, {"a": 10, "b": 20}),
    (30, {"a": 60, "b": 60}, 0, {"a": 0}, {"a": 0, "b": 30}),
    (10, {"a": 10, "b": 10, "c": 10}, 0, {}, {"a": 4, "b": 3, "c": 3}),
])
def test_shares(total, sizes, cap, weights, found):
    assert proportional(total, sizes, cap, weights) == found


def test_a_mixture_is_proportional_and_has_every_wording(folder):
    rows, report = mix(spec(folder, rows=42, inverted=0.2))
    assert report.rows == len(rows) == 42
    labels, sums = report.sources["labels"], report.sources["sums"]
    assert (labels.read, labels.usable, labels.taken) == (60, 60, 30)
    assert (sums.read, sums.usable, sums.taken) == (24, 24, 12)
    assert sum(labels.wordings) == 30
    assert abs(labels.wordings[0] - labels.wordings[1]) <= labels.inverted
    assert labels.wordings[2] == labels.inverted > 0
    inverted = [row for row in rows if asked(row).startswith("Write a sentence about ")]
    assert {row["messages"][-1]["content"].split()[0] for row in inverted} == {"say"}
    listed = [row for row in rows if "\nOne of " in asked(row)]
    assert {asked(row).split()[0] for row in listed} == {"Sort", "Class"}
    for row in listed:
        assert sorted(asked(row).split("\nOne of ")[1].split(", ")) == sorted(LABELS)
        assert row["messages"][-1]["content"] in LABELS


def test_each_row_is_asked_once_in_each_wording(folder):
    templates = ["{prompt}", "Sort: {prompt}", "{prompt} What is it?"]
    sources = {"labels": {"rows": "labels.jsonl", "templates": templates}, "sums": {"rows": "sums.jsonl"}}
    rows, report = mix(spec(folder, sources=sources, inverted=0))
    assert (report.sources["labels"].taken, report.sources["labels"].wordings) == (180, [60, 60, 60])
    assert report.sources["sums"].taken == 24
    assert len({asked(row) for row in rows}) == 204
    _, fewer = mix(spec(folder, sources=sources, inverted=0, rows=84))  # other wordings do not raise a source's share
    assert {name: each.taken for name, each in fewer.sources.items()} == {"labels": 60, "sums": 24}


def test_examples_are_of_the_same_source_and_are_not_learned(folder):
    rows, report = mix(spec(folder, few_shot={"share": 1, "examples": 3}, inverted=0))
    assert sum(source.few_shot for source in report.sources.values()) == len(rows) == 144
    assert Counter(len(row["messages"]) // 2 - 1 for row in rows).keys() == {1, 2, 3}
    for row in rows:
        questions = [message["content"] for message in row["messages"] if message["role"] == "user"]
        assert len({question.startswith("What is") for question in questions}) == 1
        assert len(set(questions)) == len(questions)
        weights = [message.get("weight", 1) for message in row["messages"] if message["role"] == "assistant"]
        assert weights == [0] * (len(weights) - 1) + [1]


def test_the_seed_decides_and_another_source_changes_nothing_in_one(folder):
    path = spec(folder, rows=42)
    assert mix(path, 1) == mix(path, 1)
    assert mix(path, 1)[1].digest != mix(path, 2)[1].digest
    given = json.loads(path.read_text())
    given["sources"]["general"] = {"rows": "general.jsonl"}
    given["rows"] = 48  # twelve rows more, and so six more are drawn
    path.write_text(json.dumps(given))
    before = {json.dumps(row) for row in mix(spec(folder, rows=42), 1)[0]}
    path.write_text(json.dumps(given))
    assert before <= {json.dumps(row) for row in mix(path, 1)[0]}


def test_replayed_rows_are_taken_as_they_are(folder):
    rows, report = mix(spec(folder, rows=40, few_shot={"share": 1}, replay={"rows": "general.jsonl", "share": 0.25}))
    general = [row for row in rows if asked(row).startswith("tell me of")]
    assert len(rows) == 40
    assert len(general) == report.sources["replay"].taken == report.sources["replay"].as_they_are == 10
    assert all(len(row["messages"]) == 2 for row in general)


def test_conversations_are_taken_as_they_are(folder):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"},
             {"role": "user", "content": "bye"}, {"role": "assistant", "content": "see you"}]
    write_lines(folder / "chat.jsonl", [{"messages": turns}])
    rows, report = mix(spec(folder, sources={"chat": {"rows": "chat.jsonl", "templates": ["Do: {prompt}"]}}))
    assert rows == [{"messages": turns}]
    assert report.sources["chat"].as_they_are == 1


def test_no_held_out_question_is_mixed(folder):
    """Eight words in a row, or the same words, in another case and with other marks."""
    long = "please tell me whether the old wooden bridge over the river is open today"
    write_lines(folder / "labels.jsonl", [
        {"prompt": "Say SOMETHING, about the apple", "completion": "lamp"},
        {"prompt": f"Hello! {long}", "completion": "weather"},
        {"prompt": "tell me whether the old bridge is open", "completion": "weather"}])
    write_lines(folder / "test.jsonl", [{"prompt": "say something about the apple!", "completion": "lamp"},
                                        {"prompt": f"{long} and tomorrow", "completion": "weather"}])
    rows, report = mix(spec(folder, held_out="test.jsonl", inverted=0))
    assert (report.held_out, report.sources["labels"].held_out, report.sources["labels"].usable) == (2, 2, 1)
    test = inspect("test.jsonl", enumerate(map(json.loads, (folder / "test.jsonl").read_text().splitlines())))
    assert not [each for each in findings(inspect("rows", enumerate(rows)), test) if each.kind == "overlap"]


def test_near_duplicates_are_dropped_unless_they_are_answered_otherwise(folder):
    write_lines(folder / "labels.jsonl", [
        {"prompt": "turn on the lamp in the upper corridor", "completion": "lamp"},
        {"prompt": "turn on the lamp in the upper corridor!!", "completion": "lamp"},
        {"prompt": "turn on the lamps in the upper corridor", "completion": "lamp"},
        {"prompt": "turn on the lamp in the upper corridor", "completion": "music"},
        {"prompt": "the upper corridor is too dark for me", "completion": "lamp"}])
    usable = {near: mix(spec(folder, near=near, inverted=0))[1].sources["labels"].usable for near in (0.9, 1)}
    assert usable == {0.9: 3, 1: 4}


def test_only_answers_that_are_options(folder):
    sources = {"labels": {"rows": "labels.jsonl", "options": ["lamp", "music"], "templates": ["{prompt} {options}"]}}
    _, report = mix(spec(folder, sources=sources))
    assert (report.sources["labels"].no_option, report.sources["labels"].taken) == (20, 40)


@pytest.mark.parametrize(("keys", "said"), [
    ({"sources": {}}, "has no sources"),
    ({"sources": {"a": {"rows": "none.jsonl"}}}, "there is no file"),
    ({"sources": {"a": {"rows": []}}}, "the rows of the source a are []"),
    ({"sources": {"a": {}}}, "the source a lacks the field 'rows'"),
    ({"sources": {"a": {"rows": "sums.jsonl", "template": "x"}}}, "'template'"),
    ({"sources": {"a": {"rows": "sums.jsonl", "templates": ["x"]}}}, "templates[0] of the source a asks the same"),
    ({"sources": {"a": {"rows": "sums.jsonl", "templates": [{"prompt": "{prompt}", "answer": "x"}]}}},
     "templates[0] of the source a is"),
    ({"sources": {"a": {"rows": "sums.jsonl", "templates": ["{prompt} {options}"]}}}, "lists {options}"),
    ({"sources": {"a": {"rows": "sums.jsonl", "options": ["x"]}}}, "no answer of the source a is one of its options"),
    ({"few_shot": {"share": 2}}, "few_shot.share is 2"),
    ({"near": 7}, "near is 7"),
    ({"rows": "many"}, 'rows is "many", a whole number'),
    ({"replay": {"rows": "general.jsonl", "share": 1}}, "replay.share is 1"),
])
def test_mistakes_are_named(folder, keys, said):
    with pytest.raises(EdgetuneError) as error:
        mix(spec(folder, **keys))
    assert said in error.value.what


def test_the_command_writes_rows_that_train_and_says_where_they_come_from(folder, tiny_llama):
    (folder / "mix.yaml").write_text("rows: 20\nnear: 1\nsources:\n  labels: {rows: labels.jsonl, weight: 3}\n"
                                     "  sums: {rows: sums.jsonl, weight: 1}\n")
    printed = run("data", "mix", folder / "mix.yaml", "-o", folder / "mixed.jsonl")
    assert printed.startswith("20 rows in ")
    assert ["labels", "60", "0", "0", "0", "15", "0", "0"] in map(str.split, printed.splitlines())
    found = json.loads(run("data", "check", folder / "mixed.jsonl", tiny_llama, "--json"))
    assert (found["data"]["usable"], found["data"]["shape"]) == (20, "messages")
    assert "exists" in run("data", "mix", folder / "mix.yaml", "-o", folder / "mixed.jsonl", code=2)
    as_json = json.loads(run("data", "mix", folder / "mix.yaml", "-o", folder / "again.jsonl", "--json"))
    assert as_json["sources"]["sums"]["taken"] == 5
    assert (folder / "again.jsonl").read_bytes() == (folder / "mixed.jsonl").read_bytes()


def test_nothing_half_written_stays(folder):
    (folder / "mix.yaml").write_text("sources: {a: {rows: [}")
    assert "mix.yaml is not YAML" in run("data", "mix", folder / "mix.yaml", "-o", folder / "mixed.jsonl", code=1)
    assert not list(folder.glob("mixed*"))


@pytest.mark.parametrize("text", [
    *(f"rows: 20\nsources: {value}\n" for value in VALUES.values()), "sources:\n" + bomb("- {value}", "- {value}"),
], ids=[*VALUES, "bomb"])
def test_odd_yaml_is_refused_within_bounds(folder, text):
    (folder / "mix.yaml").write_text(text)
    with bounded_memory(64 << 20):
        said = run("data", "mix", folder / "mix.yaml", "-o", folder / "mixed.jsonl", code=1)
    assert said.count("\n") == 1
    assert "mix.yaml" in said
