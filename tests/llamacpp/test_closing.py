"""An answer by a grammar ends within its budget of tokens, wherever the shortest one does."""

import json

import numpy as np
import pytest

pytest.importorskip("jsonschema_rs")

import jsonschema_rs
from examples import examples
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from schemas import SCHEMAS, say_anything

from edgetune.errors import UsageError
from edgetune.llamacpp import library
from edgetune.llamacpp.json_schema import grammar_of
from edgetune.llamacpp.sampling import Sampler, Sampling

PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "tags": {
    "type": "array", "items": {"type": "array", "items": {"enum": ["ab", "c"]}, "minItems": 1}, "minItems": 2},
    "born": {"type": "string", "format": "date"}, "note": {"type": "string"}}, "required": ["name", "tags", "born"]}
SHORTEST = [  # a schema, and one of the shortest texts that are valid
    ({"type": "object"}, "{}"),
    (PERSON, '{"name":"","tags":[["c"],["c"]],"born":"2000-01-01"}'),
    ({"type": "array", "items": {"type": "string", "minLength": 3}, "minItems": 2}, '["abc","abc"]'),
    ({"enum": ["a long one of them", "ä😀", 17]}, "17"),
    ({"const": "ä😀\n"}, '"ä😀\\n"'),
    ({"anyOf": [{"type": "array", "items": {"type": "integer"}}, PERSON]}, "[]"),
    ({"type": "object", "properties": {"deep": {"$ref": "#"}, "k": {"type": "number"}}, "required": ["k"]}, '{"k":0}'),
    ({"type": "number", "minimum": 10}, "10"),
]


@pytest.mark.dev
@pytest.mark.parametrize(("schema", "shortest"), SHORTEST)
def test_from_the_shortest_answer_on_each_budget_gives_a_valid_one(tokenizer, schema, shortest):
    """By a model that never wants to end its answer."""
    least = len(tokenizer.encode(shortest, special=False))
    valid = jsonschema_rs.validator_for(schema, validate_formats=True)
    for budget in [*range(least, least + 12), 200]:
        said, _ = say_anything(tokenizer, grammar_of(schema), budget, budget, haste=-50.0)
        valid.validate(json.loads(said))
    if least > 1:
        said, ended = say_anything(tokenizer, grammar_of(schema), 1, least - 1, haste=-50.0)
        assert (len(tokenizer.encode(said, special=False)) > 0, ended) == (True, False)
        with pytest.raises(ValueError, match=r"."):
            valid.validate(json.loads(said))


@pytest.mark.dev
@examples(40, phases=[Phase.generate], derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**31))
def test_an_answer_ends_within_the_tokens_of_any_other(tokenizer, schema, seed):
    """A token has at least one byte, so that an answer of n bytes shows that n tokens are enough."""
    grammar = grammar_of(schema)
    other, ended = say_anything(tokenizer, grammar, seed)
    if ended:
        said, _ = say_anything(tokenizer, grammar, seed + 1, len(other.encode()), haste=-50.0)
        jsonschema_rs.validator_for(schema, validate_formats=True).validate(json.loads(said))


def follow(tokenizer, grammar, wanted, budget):
    """(the answer of a model that wants to say this text, whether it is whole)"""
    said = b""
    with Sampler(library.load(), Sampling(grammar=grammar), tokenizer, budget=budget) as sampler:
        for token in [*tokenizer.encode(wanted, special=False), tokenizer.eot][:budget]:
            logits = np.zeros(tokenizer.n_vocab, np.float32)
            logits[token] = 9.0
            picked = sampler.pick(logits)
            if tokenizer.is_end(picked):
                break
            said += tokenizer.piece(picked)
        return said.decode(), sampler.whole


@pytest.mark.parametrize("text", [
    '{"name": "Anna ä😀", "tags": [["ab"], ["c", "ab"]], "born": "1999-12-24"}', "[1, -2, 30]"])
def test_an_answer_that_fits_stays_as_the_model_wants_it(tokenizer, text):
    grammar = grammar_of({"anyOf": [PERSON, {"type": "array", "items": {"type": "integer"}}]})
    tokens = len(tokenizer.encode(text, special=False))
    assert follow(tokenizer, grammar, text, tokens) == (text, True)
    said, whole = follow(tokenizer, grammar, text, tokens - 1)
    assert (json.loads(said) != json.loads(text), whole) == (True, True)


@pytest.mark.dev
def test_any_grammar_is_ended_with_its_sets_and_repetitions(tokenizer):
    """Negated sets, dots, escapes, groups, and repetitions of texts."""
    grammar = r"""root ::= "<" ( [^<>a-y] | . "\\" )+ (end "\x41"){2} ("xy"{2,3})? [\]\u00e4-]
end ::= "\U0001F600" | ("=" "-"*)"""
    shortest = "<z=A=A]"
    for budget in range(len(shortest), len(shortest) + 20):
        said, _ = say_anything(tokenizer, grammar, budget, budget, haste=-50.0)
        assert said[0] == "<"
        assert said[-1] in "]ä-"
        assert said.count("A") >= 2


def test_a_grammar_without_an_end_is_only_followed(tokenizer):
    assert follow(tokenizer, 'root ::= "a" root', "aaaa", 4) == ("aaaa", False)
    ambiguous = 'root ::= "a" root "b" | "a" root "c" | "."'
    assert follow(tokenizer, ambiguous, "aaaaaa", 6) == ("aa.bb", True)
    with pytest.raises(UsageError, match="too many ways at once; let alternatives"):
        follow(tokenizer, ambiguous, "a" * 40, 100)
