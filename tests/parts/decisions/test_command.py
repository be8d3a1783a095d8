"""edgetune decide: typed questions about a text, answered in the terminal."""

import json

import pytest
from commands import run
from encoder_daemon import forms, labelled, write_adapter
from json_lines import write_lines
from typed_asks import STATE
from typed_rows import KEYS, QUESTIONS, typed_rows

from edgetune.data.decisions import CHOICE, key_of, prompt_of
from edgetune.formats.gguf import open_gguf
from edgetune.serving.encoder import Encoder


@pytest.fixture(scope="module")
def adapter(adapters):
    return adapters["typed"]


def decide(model, adapter, *more):
    found = json.loads(run("decide", model, STATE, "--adapter", adapter, "--threads", 1, "--json", *more))
    return found["answers"]


def test_it_trains_and_answers_by_commands(model, tmp_path):
    """Questions can have a file of their own, as they can for training."""
    rows = [{"questions": QUESTIONS}, *({"state": row["state"], "expected": row["expected"]} for row in typed_rows())]
    out = tmp_path / "out"
    said = json.loads(run("train", model, write_lines(tmp_path / "rows.jsonl", rows), "-o", out, "--eval", "none",
                          "--steps", 1, "--threads", 1, "--json"))
    assert said["objective"]["name"] == "decide"
    questions = tmp_path / "questions.json"
    for written in (QUESTIONS, {"questions": QUESTIONS}):
        questions.write_text(json.dumps(written))
        found = decide(model, out, "--questions", questions)
        assert [*found] == [*QUESTIONS]
        assert {name: answer["answer"] for name, answer in found.items()} == {
            "lamp": "goes on", "kitchen": "true", "place": "1"}


def test_it_answers_what_the_adapter_learned(model, adapter):
    found = decide(model, adapter)
    assert sorted(found) == sorted(question["instructions"] for question in QUESTIONS.values())
    reader = Encoder(open_gguf(model), threads=1).adapter(adapter)
    for name, key in KEYS.items():
        [one] = reader.classify([reader.encoder.read(prompt_of(key, STATE))])
        options = reader.learned.options_of(key)
        answer = found[QUESTIONS[name]["instructions"]]
        assert answer["probabilities"] == pytest.approx(
            {label: float(one.probabilities[options.first + i]) for i, label in enumerate(options.labels)}, abs=1e-6)
        assert answer["type"] == QUESTIONS[name]["type"]
    said = run("decide", model, STATE, "--adapter", adapter, "--threads", 1)
    assert "Is it the kitchen?" in said
    assert "━" in said
    assert "  there " in said  # a level by its text


def test_of_many_options_the_likeliest_are_shown(model, tmp_path):
    labels = [f"option {i}" for i in range(8)]
    question = {"type": "choice", "instructions": "Which?", "criteria": dict.fromkeys(labels)}
    rows = [{"state": f"the light {'abcdefgh'[i % 8]}", "questions": {"q": question}, "expected": {"q": labels[i % 8]}}
            for i in range(24)]
    out = write_adapter(model, tmp_path / "out", rows)
    lines = run("decide", model, STATE, "--adapter", out).splitlines()
    assert lines[-1] == "  and 3 more"
    assert len(lines) == 7
    assert len(decide(model, out)["Which?"]["probabilities"]) == 8


def test_two_questions_in_the_same_words_are_both_answered(model, tmp_path):
    questions = {"a": {"type": "noul", "instructions": "Is it on?"},
                 "b": {"type": "choice", "instructions": "Is it on?", "criteria": {"yes": None, "no": None}}}
    rows = [{**row, "questions": questions, "expected": {"a": i % 2 == 0, "b": "yes" if i % 2 else "no"}}
            for i, row in enumerate(typed_rows(12))]
    found = decide(model, write_adapter(model, tmp_path / "out", rows))
    assert {name: answer["type"] for name, answer in found.items()} == {"Is it on?": "choice", "Is it on? (2)": "noul"}
    assert key_of(CHOICE, "Is it on?") < key_of("noul", "Is it on?")


def test_an_adapter_of_label_rows_has_one_question(model, tmp_path):
    out = write_adapter(model, tmp_path / "out", labelled())
    assert [*decide(model, out)["answer"]["probabilities"]] == ["lamp_off", "lamp_on"]


def test_what_cannot_be_answered_is_refused(model, adapter, tmp_path):
    questions = tmp_path / "questions.json"
    questions.write_text('{"boat": {"type": "noul", "instructions": "Is it a boat?"}}')
    asked = ("decide", model, STATE, "--adapter", adapter, "--threads", 1)
    assert "the question 'boat' was not learned" in run(*asked, "--questions", questions, code=1)
    questions.write_text('{"lamp": {"type": "choice", "criteria": {"a": null}}}')
    assert "questions.lamp has 1 options; give 2 to 255" in run(*asked, "--questions", questions, code=1)
    questions.write_text("{")
    assert "is no JSON" in run(*asked, "--questions", questions, code=1)
    assert "there is no file" in run(*asked, "--questions", tmp_path / "none.json", code=1)
    assert "the state is empty" in run("decide", model, " ", "--adapter", adapter, code=1)
    assert "no adapter is named" in run("decide", model, STATE, code=2)
    of_fields = write_adapter(model, tmp_path / "json", forms(), steps=2)
    assert "has no typed questions" in run("decide", model, STATE, "--adapter", of_fields, code=2)
