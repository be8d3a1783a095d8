"""Prompt files: what they say, what they put around a conversation, and their errors."""

import json

import numpy as np
import pytest
from bounds import bounded_memory
from encoders import WORDS, tiny_bert, write_encoder
from json_lines import write_lines
from odd_yaml import VALUES, bomb

from edgetune.data.around import flat_prompt, instructed, together
from edgetune.data.dataset import load_rows
from edgetune.data.rows import prompt_of
from edgetune.errors import DataError, EdgetuneError, FormatError
from edgetune.serving.encoder import vectors
from edgetune.serving.prompt_file import NearestExamples, Prompt, open_prompt, read_prompt, write_prompt

ROWS = [{"prompt": "turn on the light", "completion": "on"}, {"prompt": "turn off the light", "completion": "off"},
        {"prompt": "the kitchen", "completion": "where"}, {"prompt": "turn on the kitchen light", "completion": "on"}]
TALK = {"messages": [{"role": "system", "content": "old"}, {"role": "user", "content": "light"},
                     {"role": "assistant", "content": "which one"}, {"role": "user", "content": "the kitchen"},
                     {"role": "assistant", "content": "on", "weight": 1}]}


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.gguf", tiny_bert(), WORDS)


@pytest.mark.parametrize("name", ["prompt.yaml", "prompt.json"])
def test_a_prompt_is_read_as_it_was_written(tmp_path, name):
    prompt = Prompt("Say\non: or off.", [*ROWS[:2], TALK], NearestExamples(str(tmp_path / "rows.jsonl"), 2, "minilm"))
    write_prompt(tmp_path / name, prompt)
    assert read_prompt(tmp_path / name) == prompt
    with pytest.raises(EdgetuneError, match="exists"):
        write_prompt(tmp_path / name, prompt)


def test_rows_are_found_next_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "p.yaml").write_text("nearest:\n  rows: a.jsonl, ../b.jsonl\n")
    monkeypatch.chdir(tmp_path)
    found = read_prompt(tmp_path / "deep" / "p.yaml").nearest
    assert found == NearestExamples(f"{tmp_path}/deep/a.jsonl,{tmp_path}/deep/../b.jsonl", 4, "minilm")


@pytest.mark.parametrize(("text", "says"), [
    ("", "holds NoneType"), ("system: ''", "empty"), ("sistem: a", "sistem"), ("system: 3", "no text"),
    ("examples: a", "no list"), ("examples:\n- prompt: a", "example 1"), ("examples:\n- text: a", "example 1"),
    ("examples:\n- prompt: light\n  completion: on", "completion is a JSON boolean"),
    ("nearest: a.jsonl", "no keys"), ("nearest:\n  k: 2", "no file of rows"), ("system: [", "not YAML"),
    ("nearest:\n  rows: a.jsonl\n  k: 0", "k is 0"), ("nearest:\n  rows: a\n  width: 2", "width"),
    ("examples:\n- messages: [{role: system, content: a}, {role: assistant, content: a}]", "begin with a user's"),
])
def test_a_wrong_file_is_refused_in_a_sentence(tmp_path, text, says):
    (tmp_path / "prompt.yaml").write_text(text)
    with pytest.raises(FormatError, match=says) as caught:
        read_prompt(tmp_path / "prompt.yaml")
    assert "prompt.yaml" in caught.value.what
    assert caught.value.hint


@pytest.mark.parametrize("text", [
    *(f"system: {value}\n" for value in VALUES.values()), bomb("examples: {value}", "nearest: {value}"),
    "system:\n" + bomb("- {value}", "- {value}")], ids=[*VALUES, "bomb", "list of bombs"])
def test_odd_yaml_is_refused_within_bounds(tmp_path, text):
    (tmp_path / "prompt.yaml").write_text(text)
    with bounded_memory(64 << 20), pytest.raises(FormatError) as caught:
        read_prompt(tmp_path / "prompt.yaml")
    assert "prompt.yaml" in caught.value.what


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(FormatError, match="there is no prompt file"):
        read_prompt(tmp_path / "prompt.yaml")
    (tmp_path / "prompt.json").write_text("{")
    with pytest.raises(FormatError, match="no JSON"):
        read_prompt(tmp_path / "prompt.json")


def test_system_and_examples_come_before_a_conversation(tmp_path):
    write_prompt(tmp_path / "prompt.json", Prompt("Say on or off.", [ROWS[0], TALK]))
    opened = open_prompt(tmp_path / "prompt.json")
    before = [{"role": "system", "content": "Say on or off."}, user("turn on the light"), said("on"), user("light"),
              said("which one"), user("the kitchen"), said("on")]
    asked = [user("hello"), said("hi"), user("light")]
    assert opened.put(asked) == [*before, *asked]
    own = [{"role": "system", "content": "other"}, *asked]
    assert opened.put(own) == own
    assert instructed(asked, together(opened, "of the adapter")) == [*before, *asked]


def test_no_row_is_an_example_of_itself_and_no_example_is_learned(tmp_path):
    write_prompt(tmp_path / "prompt.json", Prompt("", ROWS[:2]))
    opened = open_prompt(tmp_path / "prompt.json")
    assert opened.put([user("turn on the light")])[:2] == [user("turn on the light"), said("on")]
    assert opened.put([user("turn on the light "), said("off")]) == [
        user("turn off the light"), said("off", weight=0), user("turn on the light "), said("off")]


def test_the_nearest_rows_come_last(tmp_path, encoder):
    """By the cosines of our own engine's vectors."""
    write_lines(tmp_path / "rows.jsonl", ROWS)
    nearest = NearestExamples(str(tmp_path / "rows.jsonl"), 2, str(encoder))
    write_prompt(tmp_path / "prompt.json", Prompt("", [], nearest))
    question = "the light on"
    found = vectors(encoder, [row["prompt"] for row in ROWS]) @ vectors(encoder, [question])[0]
    for _ in range(2):  # the vectors of the rows come from the cache then
        opened = open_prompt(tmp_path / "prompt.json")
        near = [ROWS[i] for i in np.argsort(-found)[:2]][::-1]
        turns = [turn for row in near for turn in (user(row["prompt"]), said(row["completion"]))]
        assert opened.put([user(question)]) == [*turns, user(question)]
        learned = opened.put([user(near[1]["prompt"]), said("?")])
        assert near[1]["prompt"] not in [message["content"] for message in learned[:-2]]
        assert len(learned) == 6
        opened.close()


def test_rows_are_rendered_with_a_prompt_as_chats_are(tmp_path, tokenizer):
    write_prompt(tmp_path / "prompt.json", Prompt("Say on or off.", ROWS[:2]))
    opened = open_prompt(tmp_path / "prompt.json")
    row = {"prompt": "the light", "completion": "on"}
    whole = [{"role": "system", "content": "Say on or off."}, user("turn on the light"), said("on"),
             user("turn off the light"), said("off"), user("the light")]
    prompt, answer = prompt_of(row, tokenizer, opened)
    assert (prompt, answer) == (tokenizer.render(whole, None, add_generation_prompt=True), "on")
    [example] = load_rows([row], tokenizer, max_length=200, system=opened).examples
    learned = example.tokens[np.flatnonzero(example.weights)]
    assert tokenizer.decode(learned.tolist()) == "on<|im_end|>"
    assert example.tokens.tolist()[:-len(learned)] == tokenizer.encode(prompt, bos=True)


def test_a_model_without_a_template_continues_text(tmp_path):
    write_prompt(tmp_path / "prompt.json", Prompt("Say on or off.", [{"prompt": "Light on: ", "completion": "on"}]))
    opened = open_prompt(tmp_path / "prompt.json")
    assert flat_prompt("Light: ", "?", opened) == "Say on or off.\n\nLight on: on\n\nLight: "
    assert flat_prompt("Light: ", "?", "Say.") == "Say.\n\nLight: "
    assert flat_prompt("Light: ", "?", None) == "Light: "


def test_rows_of_texts_alone_are_no_examples(tmp_path, encoder):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "light"}) + "\n")
    nearest = NearestExamples(str(tmp_path / "rows.jsonl"), 2, str(encoder))
    write_prompt(tmp_path / "prompt.json", Prompt("", [], nearest))
    with pytest.raises(DataError, match="no row with a question and an answer"):
        open_prompt(tmp_path / "prompt.json")
