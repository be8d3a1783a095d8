"""Grammars and schemas: what is let through is valid, what cannot be held to is refused, nothing ends the process."""

import contextlib
import ctypes
import json
import random
import time

import numpy as np
import pytest

pytest.importorskip("jsonschema_rs")

import jsonschema_rs
from examples import examples
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from llama_cpp import llama_grammar
from schemas import SCHEMAS, lets_through, say_anything

from edgetune.errors import UsageError
from edgetune.llamacpp import library
from edgetune.llamacpp.grammar import Grammar
from edgetune.llamacpp.json_schema import grammar_of
from edgetune.llamacpp.sampling import Sampler, Sampling
from edgetune.llamacpp.states import network_of

THEIRS = ("ARITHMETIC_GBNF", "C_GBNF", "CHESS_GBNF", "JAPANESE_GBNF", "JSON_ARR_GBNF", "JSON_GBNF", "LIST_GBNF")


# ---- schemas --------------------------------------------------------------------------------------------------------


@pytest.mark.dev
@examples(20, phases=[Phase.generate], derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**31))
def test_whatever_is_said_is_valid(tokenizer, schema, seed):
    said, ended = say_anything(tokenizer, grammar_of(schema), seed)
    if ended:
        jsonschema_rs.validator_for(schema, validate_formats=True).validate(json.loads(said))
        assert say_anything(tokenizer, grammar_of(schema), seed) == (said, True)
    assert ended or len(said) > 1000


@pytest.mark.parametrize(("schema", "right", "wrong"), [
    ({"type": "object"}, ['{}', '{"a": [1, {"b": null}]}', '{\n  "a": "\\u00e4"\n}'],
     ["[]", '{"a"}', "{} ", '{"a":01}']),
    ({"type": "string", "pattern": "b+"}, ['"abc"', '"b"'], ['"a"', '"']),
    ({"type": "string", "maxLength": 2}, ['"ä€"', '"\\n"'], ['"abc"']),
    ({"type": "integer", "minimum": -3, "maximum": 12}, ["-3", "0", "12"], ["-4", "13", "1.0", "007"]),
    ({"type": "number", "minimum": 0.5, "exclusiveMaximum": 3}, ["1", "2.75"], ["0.4", "3", "-1"]),
    ({"$ref": "#/$defs/tree", "$defs": {"tree": {
        "type": "object", "required": ["v"], "additionalProperties": False,
        "properties": {"v": {"type": "null"}, "t": {"$ref": "#/$defs/tree"}}}}},
     ['{"v":null}', '{"v":null,"t":{"v":null}}'], ['{"t":{"v":null}}', '{"v":null,"t":{}}']),
    ({"type": "object", "properties": {"a": {"const": 1}, "b": {"enum": ["x", "y"]}}, "required": ["b"]},
     ['{"b":"x"}', '{"a":1,"b": "y"}'], ['{"a":1}', '{"b":"z"}', '{"b":"x","c":1}']),
    ({"type": "object", "properties": {"a": {"const": 1}, "b": {"enum": ["x", "y"]}}, "additionalProperties": False,
      "x-any-order": True}, ["{}", '{"b":"x"}', '{"b":"x", "a":1}', '{"a":1,"b":"y"}'],
     ['{"c":1}', '{"a":2}', '{"a":1,}', '{"a":1 "b":"x"}']),
    ({"oneOf": [{"type": "object", "properties": {"k": {"const": "a"}}, "required": ["k"]}, {"type": "null"}]},
     ['{"k":"a"}', "null"], ['{"k":"b"}', "1"]),
    ({"type": "array", "items": {"enum": ["a", "b", 1]}, "uniqueItems": True, "minItems": 1, "maxItems": 2},
     ['["a"]', '["b", 1]', '["a",1]'], ["[]", '["a","a"]', '["a","b",1]', "[2]"]),
    ({"type": "array", "items": {"$ref": "#/$defs/k"}, "uniqueItems": True, "minItems": 2,
      "$defs": {"k": {"type": "string", "enum": ["x", "y", "z"]}}}, ['["x","y","z"]', '["y","z"]'], ['["z"]', "[]"]),
    ({"type": "array", "items": {"type": "null"}, "minItems": 2, "format": "RGB"}, ["[null,null]"], ["[null]"]),
    ({"type": "string", "format": "entity_id"}, ['"light.hall"'], ["1"]),
    ({"type": "string", "format": "duration"}, ['"P1DT2H"', '"PT5M"', '"P3W"'], ['"5M"', '"P"', '"PT"']),
    ({"type": "string", "format": "ipv6"}, ['"2001:db8:0:0:0:0:0:1"'], ['"2001:db8"']),
    ({"allOf": [{"properties": {"a": {"type": "null"}}, "required": ["a"]}], "type": "object"}, ['{"a":null}'], ["{}"]),
    ({"allOf": [{"type": "integer"}, {"type": "number", "minimum": 0, "maximum": 100}]}, ["0", "50", "100"],
     ["0.5", "101", "-1"]),  # as Home Assistant 2026.11 has it
])
def test_a_schema_means_what_it_says(tokenizer, schema, right, wrong):
    grammar = grammar_of(schema)
    for text in right:
        assert lets_through(tokenizer, grammar, text), text
        assert jsonschema_rs.is_valid(schema, json.loads(text))
    for text in wrong:
        assert not lets_through(tokenizer, grammar, text), text


@pytest.mark.dev
@pytest.mark.parametrize(("items", "written"), [
    ({"enum": ["hall", "attic"]}, '"hall"'), ({"type": "boolean"}, "true"), ({"$ref": "#/$defs/room"}, '"hall"'),
    ({"anyOf": [{"$ref": "#/$defs/room"}, {"type": "null"}]}, "null"),
    ({"oneOf": [{"const": 1, "title": "hall"}, {"const": 2, "title": "attic"}]}, "2")])
def test_a_list_of_constants_ends_unless_the_schema_allows_more(tokenizer, items, written):
    """Small models repeat one of them for ever."""
    def takes(count, **bounds):
        schema = {"type": "array", "items": items, **bounds, "$defs": {"room": {"enum": ["hall", "attic"]}}}
        return lets_through(tokenizer, grammar_of(schema), f"[{', '.join([written] * count)}]")

    assert [takes(count) for count in (0, 32, 33)] == [True, True, False]
    assert [takes(count, maxItems=70) for count in (70, 71)] == [True, False]
    assert [takes(count, minItems=70) for count in (32, 70, 71)] == [False, True, False]


def test_a_list_of_many_constants_may_have_all_of_them(tokenizer):
    for items in ({"enum": [*range(50)]}, {"anyOf": [{"enum": [*range(49)]}, {"type": "null"}]}):
        grammar = grammar_of({"type": "array", "items": items})
        assert lets_through(tokenizer, grammar, json.dumps([*range(49), 0]))
        assert not lets_through(tokenizer, grammar, json.dumps([*range(49), 0, 0]))


@pytest.mark.parametrize(("items", "written"), [
    ({"type": "integer"}, "1"), ({}, "null"), ({"anyOf": [{"enum": ["hall"]}, {"type": "string"}]}, '"x"')])
def test_a_list_of_other_items_may_have_any_length(tokenizer, items, written):
    assert lets_through(tokenizer, grammar_of({"type": "array", "items": items}), f"[{', '.join([written] * 200)}]")


@pytest.mark.parametrize(("schema", "says"), [
    ({"not": {}}, "not"), ({"type": "array", "items": {"anyOf": 3}}, "anyOf"),
    ({"type": "text"}, "type 'text'"), ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"properties": {"a": {"multipleOf": 2}}}, "at /properties/a has multipleOf"),
    ({"type": "string", "pattern": "(?=a)"}, "assert"), ({"type": "string", "pattern": "a{,3}"}, "pattern"),
    ({"type": "string", "format": "json-pointer"}, "json-pointer"),
    ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}, "refers to itself"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "two of type in allOf"),
    ({"type": "array", "items": {"const": 1}, "uniqueItems": True, "minItems": 2}, "2 different items of 1"),
    ({"$ref": "http://x/y"}, "http://x/y"), ({"$ref": "#/$defs/a"}, "#/\\$defs/a"), ({"enum": []}, "enum"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"), ({"type": "integer", "minimum": "1"}, "minimum"),
    ({"type": "object", "required": ["a"], "additionalProperties": False}, "requires a key"),
    ({"properties": {"a": {}}, "x-any-order": True}, "x-any-order and additionalProperties"),
    ({"properties": {"a": {}}, "required": ["a"], "additionalProperties": False, "x-any-order": True},
     "x-any-order and required"),
    ({"type": "string", "minimum": 1}, "minimum for another type"), (3, "schema is 3"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "no number is")])
def test_what_cannot_be_held_to_is_refused(schema, says):
    with pytest.raises(UsageError, match=says):
        grammar_of(schema)


def test_a_place_deep_in_a_schema_is_said_shortly():
    schema: dict[str, object] = {"type": "nothing"}
    for i in range(30):
        schema = {"type": "object", "properties": {f"{i}-{'k' * 60}": schema}}
    with pytest.raises(UsageError, match="type 'nothing'") as error:
        grammar_of(schema)
    assert len(str(error.value)) < 400
    with pytest.raises(UsageError, match=r"the schema at /properties/a has type"):
        grammar_of({"properties": {"a": {"type": "nothing"}}})


@pytest.mark.parametrize("schema", [
    {"oneOf": [{"type": "object", "required": ["k"], "properties": {"k": {"const": i}}} for i in range(4000)]},
    {"allOf": [{"properties": {str(i): {}}} for i in range(20_000)]},
    {"type": "array", "uniqueItems": True, "items": {"enum": [*range(20_000)]}},
    {"type": "array", "uniqueItems": True, "minItems": 1000, "items": {"enum": [*range(2000)]}}])
def test_a_schema_of_any_size_is_taken_or_refused_soon(schema):
    start = time.thread_time()
    with contextlib.suppress(UsageError):
        network_of(grammar_of(schema))
    assert time.thread_time() - start < 2


# ---- grammars -------------------------------------------------------------------------------------------------------


class Theirs:
    """llama.cpp's own sampler of a grammar. It ends the process at tokens that it does not allow."""

    def __init__(self, tokenizer, text):
        self._llama = library.load()
        self._n_vocab = tokenizer.n_vocab
        self._sampler = self._llama.llama_sampler_init_grammar(tokenizer.vocabulary, text.encode(), b"root")

    @property
    def taken(self):
        return bool(self._sampler)

    def allowed(self):
        tokens = (self._llama.llama_token_data * self._n_vocab)(*((i, 0.0, 0.0) for i in range(self._n_vocab)))
        choice = self._llama.llama_token_data_array(data=tokens, size=len(tokens), selected=-1, sorted=False)
        self._llama.llama_sampler_apply(self._sampler, ctypes.byref(choice))
        return np.array([token.logit == 0.0 for token in tokens])

    def accept(self, token):
        self._llama.llama_sampler_accept(self._sampler, token)

    def close(self):
        self._llama.llama_sampler_free(self._sampler)


def follow_both(tokenizer, text, seed, steps):
    """Follows a grammar by random tokens, which llama.cpp allows as we do; returns how many there were. Tokens that
    are no whole characters are left out: llama.cpp takes longer codes for characters too.
    """
    ours = Grammar(tokenizer, text)
    theirs = Theirs(tokenizer, text)
    if not theirs.taken:
        return 0
    known = np.array([is_end or ("\ufffd" not in tokenizer.decode([token]) and not tokenizer.is_control(token))
                      for token, is_end in enumerate(map(tokenizer.is_end, range(tokenizer.n_vocab)))])
    rng = np.random.default_rng(seed)
    for step in range(steps):
        allowed = np.flatnonzero(ours.allowed(np.arange(tokenizer.n_vocab)) & known)
        assert allowed.tolist() == np.flatnonzero(theirs.allowed() & known).tolist(), (text, step)
        token = int(rng.choice(allowed)) if len(allowed) else tokenizer.eot
        if tokenizer.is_end(token):
            break
        assert ours.accept(token) == token
        theirs.accept(token)
    theirs.close()
    return step


@pytest.mark.dev
@pytest.mark.parametrize("name", THEIRS)
def test_llama_cpps_own_grammars_mean_what_they_mean_there(tokenizer, name):
    assert sum(follow_both(tokenizer, getattr(llama_grammar, name), seed, 25) for seed in range(3)) > 20


PARTS = ("root", "a", '"x"', '""', "[a-z]", "[^b]", ".", "(", ")", "|", "*", "+", "?", "{2}", "{1,3}", "{2,}", "\n",
         " ", '"\\x41"', "#c", '"\\u00e4\\"" ', "[ä-ü\\]x-]", "\\", '"', "[", "]", "{", "}", "<", "!", "\t", "-",
         '\nroot ::= a\na ::= "y"')


@pytest.mark.dev
def test_any_grammar_is_refused_in_a_sentence_or_means_what_it_means_to_llama_cpp(tokenizer):
    steps = []
    for seed in range(400):
        dice = random.Random(seed)
        text = "root ::= " + " ".join(dice.choices(PARTS[:19] if seed % 4 else PARTS, k=dice.randint(1, 9)))
        with contextlib.suppress(UsageError):
            steps.append(follow_both(tokenizer, f'{text}\na ::= [b-d] root | "z"', seed, 12))
    assert len(steps) > 60
    assert sum(steps) > 200


@pytest.mark.parametrize(("grammar", "says"), [
    ("", "no rule named root"), ("root ::= a", "no rule 'a'"), ('root ::= "a', "line 1 .* cannot be read at '\"a'"),
    ("root ::= " + "(" * 9999, "ends within"), ('root ::= root "a"', "too many ways at once"),
    ("root ::= root", "lets no text"), ('root ::= "a"{99999}', "99999 parts"), ("root ::= (", "ends within"),
    ('root ::= "a"{3,2}', "repeats .3,2."), ('root ::= "a"\n"b"', "line 2"), ("root ::= *", r"\*"),
    ("root ::= [a] r0\n" + "".join(f"r{i} ::= r{i + 1} | r{i + 1} [b]\n" for i in range(20)) + "r20 ::= [a]",
     "too many ways at once"),
    ("root ::= <[3]>", "cannot be read"), ('root ::= "\\q"', "cannot be read"), ("root ::= []", "cannot be read")])
def test_a_grammar_that_is_none_is_refused_in_a_sentence(grammar, says):
    with pytest.raises(UsageError, match=says):
        network_of(grammar)


def chain(count):
    """Each rule begins with the next one, and all of them may be empty but for the last."""
    return "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(count)) + f"r{count} ::= [a]?\n"


def row(count):
    return "root ::= " + " ".join(f"r{i}" for i in range(count)) + "\n" + "".join(
        f"r{i} ::= [a]? [b] | [c]\n" for i in range(count))


@pytest.mark.dev
@pytest.mark.parametrize("made", [chain, row, lambda n: "root ::= " + "([a]? " * n + ")" * n + " [b]" * n,
                                  lambda n: "root ::= [a]\n" + "root ::= ([b])\n" * n])
def test_a_grammar_of_any_shape_is_taken_or_refused_soon(made):
    """By the work that is counted, so that no machine is too slow."""
    for count in (800, 3200):
        with contextlib.suppress(UsageError):
            assert network_of(made(count)).root


# ---- sampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_k": 5}, {"temperature": 0.8, "top_k": 0}])
def test_penalties_and_biases_are_llama_cpps(tokenizer, options):
    """Against its chain, link by link, over logits of noise."""
    llama = library.load()
    sampling = Sampling(**options, seed=3, repeat_penalty=1.4, presence_penalty=0.7, frequency_penalty=-0.4,
                        repeat_last_n=8, logit_bias=((5, 2.5), (17, -100)))
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    biases = (llama.llama_logit_bias * 2)((5, 2.5), (17, -100))
    links = [llama.llama_sampler_init_logit_bias(tokenizer.n_vocab, 2, biases),
             llama.llama_sampler_init_penalties(tokenizer.n_vocab, 8, 1.4, -0.4, 0.7)]
    if options:
        links += [llama.llama_sampler_init_top_k(options["top_k"]), llama.llama_sampler_init_top_p(0.95, 1),
                  llama.llama_sampler_init_min_p(0.05, 1), llama.llama_sampler_init_temp(options["temperature"]),
                  llama.llama_sampler_init_dist(3)]
    else:
        links.append(llama.llama_sampler_init_greedy())
    for link in links:
        llama.llama_sampler_chain_add(chain, link)
    before = [7, 8, 9, 9, 30]
    for token in before:
        llama.llama_sampler_accept(chain, token)
    rng = np.random.default_rng(0)
    picked = []
    with Sampler(llama, sampling, tokenizer, before) as ours:
        for _ in range(40):
            logits = rng.standard_normal(tokenizer.n_vocab).astype(np.float32)
            logits[9] += 2
            picked.append(ours.pick(logits))
            assert picked[-1] == apply(llama, chain, logits)
    llama.llama_sampler_free(chain)
    assert len(set(picked)) > 8


def apply(llama, chain, logits):
    tokens = (llama.llama_token_data * len(logits))(*((i, float(logit), 0.0) for i, logit in enumerate(logits)))
    choice = llama.llama_token_data_array(data=tokens, size=len(logits), selected=-1, sorted=False)
    llama.llama_sampler_apply(chain, ctypes.byref(choice))
    token = tokens[choice.selected].id
    llama.llama_sampler_accept(chain, token)
    return token


def test_the_likeliest_allowed_token_is_found_without_asking_for_all(tokenizer):
    """The same as where the grammar is applied to the whole vocabulary, whichever of the short ways applies."""
    followed = Grammar(tokenizer, 'root ::= [a-d]+ "x" | "10"')
    rng = np.random.default_rng(1)
    every = followed.allowed(np.arange(tokenizer.n_vocab))
    for count in (1, 3, 0):
        for _ in range(20):
            logits = rng.standard_normal(tokenizer.n_vocab).astype(np.float32)
            expected = np.argsort(np.where(every, -logits, np.inf))[: count or every.sum()]
            assert followed.likeliest(logits, count).tolist() == expected.tolist()
            near = [token for token in expected.tolist() if logits[token] >= logits[expected[0]] - 0.5]
            assert followed.likeliest(logits, count, 0.5).tolist() == near


@pytest.mark.parametrize("wrong", [{"presence_penalty": 3.0}, {"repeat_penalty": 0.0}, {"repeat_last_n": -2},
                                   {"logit_bias": ((1, 101.0),)}, {"logit_bias": ((999, 1.0),)}])
def test_options_out_of_range_are_refused(tokenizer, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Sampler(library.load(), Sampling(**wrong), tokenizer)
