"""Rows of well-known data sets, as their cards show them, become rows that we know; others are refused."""

import json

import pair_rows
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data import loader
from edgetune.data import rows as supervised
from edgetune.data.dataset import load, load_rows
from edgetune.data.formats import Columns, recognised
from edgetune.errors import DataError
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training.config import TrainConfig

ALPACA = {"instruction": "Create a classification task by clustering the given list of items.",
          "input": "Apples, oranges, bananas, strawberries, pineapples",
          "output": "Class 1: Apples, Oranges\nClass 2: Bananas, Strawberries\nClass 3: Pineapples"}
SHAREGPT = {"id": "QWJhYvA_0", "conversations": [
    {"from": "human", "value": "Summarize the main ideas"}, {"from": "gpt", "value": "Here are three"},
    {"from": "human", "value": "Only one"}, {"from": "gpt", "value": "Know your audience"}]}
GSM8K = {"question": "Natalia sold clips to 48 of her friends", "answer": "48/2 = <<48/2=24>>24\n#### 72"}
DOLLY = {"instruction": "When did Virgin Australia start operating?", "context": "It commenced on 31 August 2000.",
         "response": "31 August 2000", "category": "closed_qa"}
ORCA = {"id": "flan.564327", "system_prompt": "You think step by step.", "question": "Premise: a man. A hypothesis?",
        "response": "No"}
FACTORY = {"instruction": "And today?", "input": "", "output": "Warm", "system": "Be brief.",
           "history": [["Yesterday?", "Cold"]]}


def conversation(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(("row", "expected"), [
    (ALPACA, {"prompt": f"{ALPACA['instruction']}\n\n{ALPACA['input']}", "completion": ALPACA["output"]}),
    (ALPACA | {"input": ""}, {"prompt": ALPACA["instruction"], "completion": ALPACA["output"]}),
    (SHAREGPT, conversation(("user", "Summarize the main ideas"), ("assistant", "Here are three"), ("user", "Only one"),
                            ("assistant", "Know your audience"))),
    (GSM8K, {"prompt": GSM8K["question"], "completion": GSM8K["answer"]}),
    (DOLLY, {"prompt": f"{DOLLY['instruction']}\n\n{DOLLY['context']}", "completion": "31 August 2000"}),
    (ORCA, conversation(("system", ORCA["system_prompt"]), ("user", ORCA["question"]), ("assistant", "No"))),
    (FACTORY, conversation(("system", "Be brief."), ("user", "Yesterday?"), ("assistant", "Cold"),
                           ("user", "And today?"), ("assistant", "Warm"))),
    ({"prompt": "a", "response": "b"}, {"prompt": "a", "completion": "b"}),
    ({"query": "a", "answer": "b", "tools": [{"name": "f"}]},
     {"prompt": "a", "completion": "b", "tools": [{"name": "f"}]}),
    (FACTORY | {"history": [], "tools": [{"name": "f"}]}, conversation(
        ("system", "Be brief."), ("user", "And today?"), ("assistant", "Warm")) | {"tools": [{"name": "f"}]}),
    ({"input": "a", "output": "b"}, {"prompt": "a", "completion": "b"}),
    ({"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "source": "x"},
     conversation(("user", "a"), ("assistant", "b"))),
])
def test_documented_rows(row, expected):
    assert recognised(row, [supervised]) == expected


@pytest.mark.parametrize("row", [
    {"prompt": "a", "completion": "b", "response": "c"},
    {"text": "a", "instruction": "b", "output": "c"},
    conversation(("user", "a"), ("assistant", "b")) | {"tools": []},
    "plain text",
])
def test_what_was_read_before_is_read_as_before(row):
    assert recognised(row, [supervised]) is row


def test_an_objective_keeps_its_rows():
    row = {"prompt": "a", "better": "b", "worse": "c"}
    assert recognised(row, [pair_rows]) is row
    with pytest.raises(DataError, match=r"the row is no pair; expected is prompt with better and worse$"):
        recognised({"prompt": "a", "chosen": "b"}, [pair_rows])


def test_named_columns():
    row = {"Frage": "a", "Antwort": "b", "prompt": "c", "completion": "d"}
    assert recognised(row, [supervised], Columns("Frage", "Antwort")) == {"prompt": "a", "completion": "b"}
    assert recognised(row, [supervised], Columns(completion="Antwort")) == {"prompt": "c", "completion": "b"}


@pytest.mark.parametrize(("row", "columns", "sentence"), [
    ({"frage": "a", "antwort": "b"}, Columns(),
     r"the row has an unknown shape \(its keys: frage, antwort\); expected is messages, prompt with completion, or "
     r"text, or name its keys: --prompt-column frage --completion-column antwort"),
    ({"reply": "b", "question": "a"}, Columns(), "name its keys: --prompt-column question --completion-column reply"),
    ({"answer": "b", "the ask": "a"}, Columns(), "its keys: --prompt-column 'the ask' --completion-column answer"),
    ({"a": "a", "b": "b", "c": "c"}, Columns(), "name its keys: --prompt-column KEY --completion-column KEY"),
    ({"frage": "a", "antwort": "b"}, Columns("Frage", "antwort"),
     r"the row has no key 'Frage' \(its keys: frage, antwort\); name one of them with --prompt-column"),
    ({"prompt": "a"}, Columns(completion="b"), "no key 'b' .*; name one of them with --completion-column"),
    ("text", Columns("a", "b"), "the row is a JSON string, which has no keys; leave the columns' names out"),
    ({"question": "a", "answer": "b", "response": "c"}, Columns(),
     r"several keys that could be its answer \(response, answer\); name its keys: --prompt-column KEY"),
    ({"question": "a", "query": "a", "answer": "b"}, Columns(), r"could be its question \(question, query\)"),
    ({"question": "a", "answer": 42}, Columns(), "answer is a JSON number; write text"),
    ({"question": ["a"], "answer": "b"}, Columns(), "question is a JSON list; write text"),
    ({"question": "a", "context": {"b": 1}, "answer": "b"}, Columns(), "context is a JSON object; write text"),
    ({"instruction": "a", "output": "b", "history": [["c"]]}, Columns(), "history is not a list of pairs of texts"),
    ({"conversations": []}, Columns(), "conversations is empty; write a list of objects with from and value"),
    ({"conversations": "a"}, Columns(), "conversations is a JSON string"),
    ({"conversations": ["a"]}, Columns(), r"conversations\[0\] is a JSON string; write an object with from and value"),
    ({"conversations": [{"from": "narrator", "value": "a"}]}, Columns(),
     r"conversations\[0\] is from 'narrator' \(its keys: from, value\); use one of human, user, gpt"),
    ({"conversations": [{"from": ["human"], "value": "a"}]}, Columns(), r"is from \['human'\]"),
    ({"conversations": [{"from": "human", "value": None}]}, Columns(), "has a value of JSON type null; write text"),
])
def test_other_rows_are_refused(row, columns, sentence):
    with pytest.raises(DataError, match=sentence):
        recognised(row, [supervised], columns)


def test_where_columns_cannot_be_named_nobody_is_told_to():
    for row, sentence in (({"a": "b"}, "expected is messages, prompt with completion, or text"),
                          ({"query": "a", "answer": "b", "output": "c"}, "leave all but one out")):
        with pytest.raises(DataError) as caught:
            recognised(row, [supervised])
        assert caught.value.hint == sentence


def test_each_format_is_trained_as_the_row_that_it_stands_for(tiny_llama, tmp_path):
    tokenizer = Tokenizer(tiny_llama)
    for row in (ALPACA, SHAREGPT, GSM8K, DOLLY, ORCA, FACTORY):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row))
        there = load(path, tokenizer, max_length=4096)
        here = load_rows([recognised(row, [supervised])], tokenizer, max_length=4096)
        assert there.rows == here.rows
        assert there.examples[0].tokens.tolist() == here.examples[0].tokens.tolist()
        assert there.examples[0].weights.tolist() == here.examples[0].weights.tolist()


KEYS = st.sampled_from(["conversations", "from", "value", "role", "content", "instruction", "input", "output",
                        "history", "system", "question", "answer", "tools", "weight"])
JSON = st.recursive(st.none() | st.integers() | st.sampled_from(["human", "gpt", "user", "assistant", "", "lamp"]),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=12)
TURN = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]) | JSON, "value": st.just("lamp") | JSON},
                             optional={"weight": JSON})
ROW = st.fixed_dictionaries({"conversations": st.lists(TURN, max_size=3)}, optional={"tools": JSON, "system": JSON})


@examples(100)
@given(row=JSON | ROW | st.dictionaries(KEYS, JSON, max_size=6))
def test_any_json_is_a_row_that_trains_or_a_sentence(tokenizer, row):
    try:
        data = load_rows([recognised(row, [supervised])], tokenizer, max_length=64)
    except DataError:
        return
    assert all(example.weights.any() for example in data.examples)


@pytest.mark.dev
@pytest.mark.parametrize("row", [
    {"prompt": "lamp", "completion": " \n"}, {"question": "lamp", "answer": ""},
    conversation(("user", "a"), ("assistant", "")),
])
def test_an_empty_answer_is_not_learned(tiny_llama, tmp_path, row):
    """It would teach to say nothing. It can be measured, and jobs read rows that were checked when they arrived."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(conversation(("user", "a"), ("assistant", "b")) if "messages" in row else
                               {"prompt": "a", "completion": "b"}) + "\n" + json.dumps(row))
    with pytest.raises(DataError, match=r"^line 2 of rows\.jsonl: .* is empty; write (it, or|the answer,)"):
        loader.load(tiny_llama, (path, None), TrainConfig(max_length=64))
    assert len(loader.load(tiny_llama, (path, None), TrainConfig(max_length=64), learnable=False)[0].examples) == 2
    assert len(load(path, Tokenizer(tiny_llama), max_length=64).examples) == 2
