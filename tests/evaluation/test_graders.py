"""Graders: OpenAI's documented examples and rules, and the libraries that a metric names, called directly."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from rapidfuzz import fuzz, utils
from rouge_score.rouge_scorer import RougeScorer

from edgetune.errors import DataError, UsageError
from edgetune.evaluation.graders.base import grader_types, load_grader, read_grader
from edgetune.evaluation.graders.formula import FUNCTIONS, NoValueError, parse_formula
from edgetune.evaluation.graders.sample import Sample, Ungraded
from edgetune.evaluation.graders.template import parse_template
from edgetune.evaluation.judge import same as is_right

PAIRS = [("fuzzy wuzzy was a bear", "fuzzy wuzzy had no hair"), ("the cat sat on the mat", "the cat sat on the mat"),
         ("It is, on the mat, a cat.", "a cat is on the mat"), ("", "something"), ("completely different", "no word"),
         ("The quick brown fox jumps over the lazy dog today", "The quick brown fox jumped over a lazy dog")]


def check(operation, text, reference):
    return {"type": "string_check", "name": "c", "operation": operation, "input": text, "reference": reference}


def grade(written, sample="", item=None, **means):
    sample = Sample(sample) if isinstance(sample, str) else sample
    grade, = read_grader(written, **means).grade([sample], [item or {}])
    return grade


def reward(written, sample="", item=None):
    found = grade(written, sample, item)
    assert found.errors == {}
    return found.reward


@pytest.mark.parametrize(("operation", "text", "reference", "wanted"), [
    ("eq", "Paris", "Paris", 1), ("eq", "Paris", "paris", 0), ("eq", "Paris ", "Paris", 0),
    ("ne", "Paris", "Rome", 1), ("ne", "Paris", "Paris", 0),
    ("like", "It is Paris.", "Paris", 1), ("like", "It is paris.", "Paris", 0), ("like", "Paris", "It is Paris", 0),
    ("ilike", "It is pARIS.", "Paris", 1), ("ilike", "Rome", "Paris", 0),
])
def test_string_check(operation, text, reference, wanted):
    written = check(operation, "{{ sample.output_text }}", "{{item.city}}")
    assert reward(written, text, {"city": reference}) == wanted


def test_openais_example_of_tool_calls():
    """The grader of its guide: function name and arguments, each half of the reward."""
    written = {"type": "multi", "calculate_output": "0.5 * function_name + 0.5 * arguments", "graders": {
        "function_name": {"name": "function_name", "type": "string_check", "input": "get_acceptors",
                          "reference": "{{sample.output_tools[0].function.name}}", "operation": "eq"},
        "arguments": {"name": "arguments", "type": "string_check", "input": '{"smiles": "{{item.smiles}}"}',
                      "reference": "{{sample.output_tools[0].function.arguments}}", "operation": "eq"}}}
    call = {"id": "a", "type": "function", "function": {"name": "get_acceptors", "arguments": '{"smiles": "CCO"}'}}
    right = grade(written, Sample("", [call]), {"smiles": "CCO"})
    assert (right.reward, right.parts) == (1.0, {"function_name": 1.0, "arguments": 1.0})
    half = grade(written, Sample("", [call]), {"smiles": "CCC"})
    assert (half.reward, half.parts) == (0.5, {"function_name": 1.0, "arguments": 0.0})
    none = grade(written, Sample("no call"), {"smiles": "CCO"})
    assert (none.reward, none.errors) == (0.0, {"invalid_variable_error": True})


def test_openais_example_of_two_fields():
    written = {"type": "multi", "graders": {
        "name": {"name": "name_grader", "type": "text_similarity", "input": "{{sample.output_json.name}}",
                 "reference": "{{item.name}}", "evaluation_metric": "fuzzy_match", "pass_threshold": 0.9},
        "email": {"name": "email_grader", "type": "string_check", "input": "{{sample.output_json.email}}",
                  "reference": "{{item.email}}", "operation": "eq"}}, "calculate_output": "(name + email) / 2"}
    item = {"name": "John Doe", "email": "john.doe@gmail.com"}
    assert reward(written, json.dumps(item), item) == 1
    other = grade(written, json.dumps({**item, "name": "Jon Do"}), item)
    assert other.reward == pytest.approx((fuzz.WRatio("Jon Do", "John Doe", processor=utils.default_process) / 100 + 1)
                                         / 2)
    assert grade(written, "no JSON", item).errors == {"sample_parse_error": True}
    assert read_grader(written).to_json() == {**written, "name": "multi"}


# ---- text similarity -------------------------------------------------------------------------------------------------


def similarity(metric, text, reference):
    return reward({"type": "text_similarity", "input": text, "reference": reference, "evaluation_metric": metric})


@pytest.mark.parametrize(("text", "reference"), PAIRS)
def test_similarities_are_those_of_the_libraries(text, reference):
    from nltk.translate.gleu_score import sentence_gleu
    from nltk.translate.meteor_score import single_meteor_score
    from sacrebleu import sentence_bleu
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    words = [Tokenizer13a()(reference).split(), Tokenizer13a()(text).split()]

    class NoWordNet:
        synsets = staticmethod(lambda _: [])

    assert similarity("fuzzy_match", text, reference) == fuzz.WRatio(
        text, reference, processor=utils.default_process) / 100
    assert similarity("bleu", text, reference) == min(1, sentence_bleu(text, [reference]).score / 100)
    assert similarity("gleu", text, reference) == sentence_gleu([words[0]], words[1])
    assert similarity("meteor", text, reference) == single_meteor_score(*words, wordnet=NoWordNet())
    for n in (1, 2, 3, 4, 5):
        scores = RougeScorer([f"rouge{n}"]).score(reference, text)
        assert similarity(f"rouge_{n}", text, reference) == scores[f"rouge{n}"].fmeasure
    assert similarity("rouge_l", text, reference) == RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure


@pytest.mark.parametrize("metric", ["fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_l"])
def test_similarity_of_the_same_and_of_others(metric):
    same = "the cat sat on the mat in the sun"
    assert similarity(metric, same, same) > 0.99
    assert similarity(metric, "dogs bark", same) < 0.5


def test_a_package_that_is_missing_is_named(monkeypatch):
    from edgetune.errors import EdgetuneError
    from edgetune.evaluation.graders.text_similarity import similarity as cached
    cached.cache_clear()
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    monkeypatch.setitem(sys.modules, "jsonschema.exceptions", None)
    for written, package in (({"type": "text_similarity", "input": "a", "reference": "b",
                               "evaluation_metric": "fuzzy_match"}, "rapidfuzz"),
                             ({"type": "json_schema", "schema": {}}, "jsonschema")):
        with pytest.raises(EdgetuneError, match=rf"needs the package {package}, .*; pip install 'edgetune\[graders\]'"):
            read_grader(written)


def test_a_threshold_passes_answers_and_leaves_the_reward():
    written = {"type": "text_similarity", "input": "a b", "reference": "a c", "evaluation_metric": "rouge_1",
               "pass_threshold": 0.4}
    assert read_grader(written).passes_at == 0.4
    assert reward(written) == 0.5
    assert read_grader(check("eq", "a", "b")).passes_at == 1


# ---- templates -------------------------------------------------------------------------------------------------------

ITEM = {"a": {"b": [1, "two", {"c d": None}]}, "n": 1.0, "text": "{{ item.n }}"}


@pytest.mark.parametrize(("text", "wanted"), [
    ("{{item.a.b[1]}}", "two"), ("{{ item.a.b[-3] }}", "1"), ("{{ item.n }}!", "1.0!"),
    ('{{ item["a"].b[2]["c d"] }}', "null"), ("{{ item.a }}", '{"b": [1, "two", {"c d": null}]}'),
    ("{{item.text}}", "{{ item.n }}"), ('{"a":{"b":1}}', '{"a":{"b":1}}'), ("", ""),
    ("{{sample.output_text}}", '{"x": [true]}'), ("{{ sample.output_json.x[0] }}", "true"),
    ("{{ sample.choices[0].message.content }}", '{"x": [true]}'), ("{{ sample.choices[0].finish_reason }}", "length"),
    ("{{ sample.output_tools }}", "[]"),
])
def test_templates(text, wanted):
    template = parse_template(text, "t")
    template.check(ITEM)
    assert template.render(Sample('{"x": [true]}', finish_reason="length"), ITEM) == wanted


@pytest.mark.parametrize(("text", "says"), [
    ("{{ item.x", "{{ without }}"), ("{{ items.x }}", "names 'items'"), ("{{ item.x | upper }}", "is no path"),
    ("{{ 1 + 1 }}", "is no path"), ("{{ 1 }}", "names '1'"),
    ("{{}}", "is no path"), ("{{ sample.text }}", "of sample there are output_text"),
    ("{{ sample }}", "of sample there are"), ("{{ item.__class__() }}", "is no path"),
])
def test_what_is_no_template(text, says):
    with pytest.raises(UsageError, match="the grader c") as error:
        read_grader(check("eq", text, "x"))
    assert says in str(error.value)


def test_a_row_without_a_variable_is_refused_before_any_answer():
    grader = read_grader(check("eq", "{{ sample.output_text }}", "{{ item.a.b[3] }}"))
    with pytest.raises(DataError, match=r"the row has no item\.a\.b\[3\].*its columns are a, n, text"):
        grader.check_item(ITEM)
    assert grade(grader.to_json(), "x", ITEM).errors == {"invalid_variable_error": True}
    multi = read_grader({"type": "multi", "graders": {"a": grader.to_json()}, "calculate_output": "a"})
    with pytest.raises(DataError, match=r"item\.a\.b\[3\]"):
        multi.check_item(ITEM)


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8)


@settings(max_examples=40)
@given(st.text(alphabet="{} item.sample_output_json[0]\"'ab", max_size=60) | st.text(max_size=40),
       st.text(max_size=20) | VALUES.map(json.dumps), st.dictionaries(st.sampled_from("ab"), VALUES))
def test_no_template_and_no_answer_raises_anything_else(text, said, item):
    try:
        template = parse_template(text, "t")
    except UsageError:
        return
    errors = {}
    try:
        assert isinstance(template.render(Sample(said), item), str)
    except Ungraded as error:
        errors = error.errors
    assert errors.keys() <= {"sample_parse_error", "invalid_variable_error"}


# ---- formulas --------------------------------------------------------------------------------------------------------

NAMES = {"a": 0.5, "b": 2.0, "c": -3.0}
FORMULAS = st.recursive(
    st.sampled_from(sorted(NAMES)) | st.integers(0, 9).map(str) | st.sampled_from(["0.25", "1.5e1", ".5", "2."]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "^", " ^ "]), inner).map("".join),
        inner.map("-{}".format), inner.map("({})".format), inner.map("abs({})".format), inner.map("exp({})".format),
        inner.map("floor({})".format), inner.map("ceil({})".format), inner.map("sqrt({})".format),
        inner.map("log({})".format), st.lists(inner, min_size=2, max_size=3).map(lambda v: f"min({','.join(v)})"),
        st.lists(inner, min_size=2, max_size=3).map(lambda v: f"max({','.join(v)})")), max_leaves=8)


@given(FORMULAS)
@example("floor(c^a)")  # of a complex number
@example("exp(-(c^a))")
def test_formulas_are_pythons(text):
    python = {**{name: getattr(math, name) for name in FUNCTIONS if hasattr(math, name)},
              "min": min, "max": max, "abs": abs, "floor": lambda x: float(math.floor(x)),
              "ceil": lambda x: float(math.ceil(x)), "__builtins__": {}}
    try:
        wanted = eval(_floats(text), python, dict(NAMES))
        is_number = not isinstance(wanted, complex) and math.isfinite(wanted)
    except (ArithmeticError, ValueError, TypeError):
        is_number = False
    formula = parse_formula(text, NAMES)
    if is_number:
        assert formula(NAMES) == pytest.approx(wanted, rel=1e-12)
    else:
        with pytest.raises(NoValueError):
            formula(NAMES)


def _floats(text):
    """Python's notation, without its long integers."""
    import re
    return re.sub(r"(?<![\w.])(\d+)(?![\w.])", r"\1.0", text.replace("^", "**"))


@pytest.mark.parametrize(("text", "wanted"), [("2 ^ 3", 8), ("2 ^ 3 ^ 2", 512), ("-2 ^ 2", -4), ("2^-1", 0.5),
                                              ("min(a, b, 1) + max(a, 0)", 1.0), ("1 - 2 - 3", -4), ("+a", 0.5)])
def test_formulas(text, wanted):
    assert parse_formula(text, NAMES)(NAMES) == wanted


@pytest.mark.parametrize(("text", "says"), [
    ("a + d", "names 'd'"), ("a +", "at 'its end'"), ("(a", "at 'its end'"), ("a b", "at 'b'"), ("", "its end"),
    ("a ** b", "at '\\*'"), ("a.real", r"at '\.real'"), ("__import__('os')", "calls|at"),
    ("log(a, b)", "2 values"), ("eval(a)", "calls 'eval'"),
    ("min()", r"at '\)'"), ("a if b else c", "at 'if'"), ("(" * 40 + "a" + ")" * 40, "more than 30 levels"),
    ("-" * 40 + "a", "more than 30 levels"), ("a+" * 1200 + "a", "the limit is 2000"), ("a % b", "at '% b'"),
])
def test_what_is_no_formula(text, says):
    with pytest.raises(UsageError, match=says):
        parse_formula(text, NAMES)


def test_a_formula_without_a_value_is_an_error_of_the_answer():
    written = {"type": "multi", "graders": {"a": check("eq", "{{sample.output_text}}", "x")},
               "calculate_output": "1 / a"}
    assert reward(written, "x") == 1
    found = grade(written, "y")
    assert (found.reward, found.errors, found.parts) == (0, {"formula_parse_error": True}, {"a": 0})
    for text in ("9 ^ 9 ^ 9", "floor(9 ^ 300) * floor(9 ^ 300)", "log(a)", "sqrt(a - 1)", "(a - 1) ^ 0.5", "exp(1000)"):
        assert grade({**written, "calculate_output": text}, "y").errors == {"formula_parse_error": True}


# ---- edgetune's ------------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "required": ["intent"], "additionalProperties": False, "properties": {
    "intent": {"enum": ["on", "off"]}, "lamp": {"type": "integer", "minimum": 0}}}


@pytest.mark.parametrize("value", [{"intent": "on"}, {"intent": "up"}, {"intent": "on", "lamp": 3}, {"lamp": 1}, [],
                                   {"intent": "on", "lamp": "3"}, {"intent": "off", "x": 1}])
def test_json_schema(value):
    written = {"type": "json_schema", "schema": SCHEMA}
    assert reward(written, json.dumps(value)) == Draft202012Validator(SCHEMA).is_valid(value)


def test_json_schema_of_no_json_and_of_no_schema():
    written = {"type": "json_schema", "schema": SCHEMA}
    for text in ("no JSON", "", "NaN", "[" * 100_000):
        assert grade(written, text).errors == {"sample_parse_error": True}
    with pytest.raises(UsageError, match="is no JSON schema"):
        read_grader({**written, "schema": {"type": "thing"}})
    away = {"type": "json_schema", "schema": {"$ref": "http://127.0.0.1:9/schema.json"}}
    assert grade(away, "1").errors == {"other_error": True}


@pytest.mark.parametrize(("given", "wanted", "share"), [
    ({"a": 1, "b": "x"}, {"a": 1.0, "b": "x"}, 1), ({"a": 1, "b": "y"}, {"a": 1, "b": "x"}, 1 / 2),
    ({"a": True}, {"a": 1}, 0), ({"a": 1, "c": 2}, {"a": 1, "b": 2}, 1 / 3), ({}, {"a": 1}, 0), ({}, {}, 1),
    ({"a": {"b": [1, 2]}, "c": []}, {"a": {"b": [1, 3]}, "c": []}, 2 / 3), ([1], [1, 2], 1 / 2), (3, 3, 1),
    ({"a": None}, {"a": None}, 1), ({"a": None}, {}, 0),
])
def test_json_match(given, wanted, share):
    written = {"type": "json_match", "reference": "{{ item.answer }}"}
    for answer in (wanted, json.dumps(wanted)):
        read_grader(written).check_item({"answer": answer})
        assert reward(written, json.dumps(given), {"answer": answer}) == pytest.approx(share)


def test_json_match_of_no_json():
    written = {"type": "json_match", "reference": "{{ item.answer }}"}
    assert grade(written, "no", {"answer": "{}"}).errors == {"sample_parse_error": True}
    with pytest.raises(DataError, match="is no JSON in the row"):
        read_grader(written).check_item({"answer": "no"})


@pytest.mark.parametrize(("value", "share"), [
    ({"intent": "play", "artist": "the  BEATLES", "year": 1969}, 1), ({"artist": "Beat", "year": 1969}, 1 / 2),
    ({"artist": ["Beatles", "Stones"]}, 1 / 2), ({"year": 196}, 0), ({"year": 1969.0, "on": True, "x": None}, 1),
    ({"volume": 0.5}, 1), ({"volume": 5}, 0), ({"volume": 0.50, "artist": ""}, 1 / 2), ({}, 1), ("road", 1),
])
def test_grounded(value, share):
    prompt = "Play Abbey Road by The Beatles, from 1969, at volume 0.5."
    written = {"type": "grounded", "ignore": ["intent"]}
    said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "Stones, Beat, 196"}]
    for item in ({"prompt": prompt}, {"messages": said}, {"prompt": said[:1]}):
        read_grader(written).check_item(item)
        assert reward(written, json.dumps(value), item) == pytest.approx(share)
    assert reward({**written, "source": "{{ item.text }}"}, '{"a": "x"}', {"text": "is X."}) == 1
    with pytest.raises(DataError, match="the row asks nothing"):
        read_grader(written).check_item({"text": "x"})


@pytest.mark.parametrize(("text", "reference", "wanted"), [
    ("It is 42.", "42", 1), ("40 + 2 = 42", 42, 1), ("42 or 43", 42, 0), ("1,234.5 in all", 1234.5, 1),
    ("so x = -3", -3, 1), ("5-3", 3, 1), ("1e3", 1000, 1), ("#### 7", "She has 3. #### 7", 1), (".5", 0.5, 1),
    ("3.14", 3.14159, 0), ("12,34", 34, 1),
])
def test_numeric(text, reference, wanted):
    written = {"type": "numeric", "reference": "{{item.answer}}"}
    read_grader(written).check_item({"answer": reference})
    assert reward(written, text, {"answer": reference}) == wanted


def test_numeric_with_tolerance_and_pattern():
    written = {"type": "numeric", "reference": "{{item.answer}}"}
    assert reward({**written, "tolerance": 0.01}, "3.14", {"answer": 3.1416}) == 1
    assert reward({**written, "relative_tolerance": 0.01}, "101", {"answer": 100}) == 1
    assert reward({**written, "relative_tolerance": 0.01}, "102", {"answer": 100}) == 0
    assert reward({**written, "pattern": r"answer: (\S+)"}, "answer: 7, of 9", {"answer": 7}) == 1
    assert grade({**written, "pattern": "answer: (.*)"}, "7", {"answer": 7}).errors == {"sample_parse_error": True}
    assert grade(written, "none, or 1e999", {"answer": 7}).errors == {"sample_parse_error": True}
    with pytest.raises(DataError, match="has no number in the row"):
        read_grader(written).check_item({"answer": "none"})


def test_regex():
    assert reward({"type": "regex", "pattern": r"\d+"}, "a 12") == 1
    assert reward({"type": "regex", "pattern": r"\d+", "full": True}, "a 12") == 0
    assert reward({"type": "regex", "pattern": "(?s)<think>.*</think>.+", "full": True}, "<think>\n</think>x") == 1


@pytest.mark.parametrize(("words", "wanted"), [(0, 0), (1, 0.5), (2, 1), (4, 1), (6, 0.5), (8, 0), (100, 0)])
def test_length(words, wanted):
    assert reward({"type": "length", "min": 2, "max": 4}, "word " * words) == wanted
    assert reward({"type": "length", "min": 2, "max": 4, "unit": "characters"}, "w" * words) == wanted


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "says"), [
    ({"type": "string_chek"}, "the type of a grader is 'string_chek'; did you mean string_check?"),
    ({"name": "x"}, "a grader has no type; choose from agreement, grounded, json_match"),
    ({"type": 3}, "the type of a grader is 3"), ([], "a grader is a list; write an object"),
    ({"type": "label_model", "name": "x"}, "the grader label_model is for evals alone"),
    ({**check("eq", "a", "b"), "refernce": 1}, "has no field 'refernce'; did you mean reference?"),
    ({"type": "string_check", "name": "c", "input": "a"}, "lacks the field reference; it needs reference, operation"),
    (check("neq", "a", "b"), "operation of the grader c (string_check) is 'neq'; give one of eq, ne, like, ilike"),
    (check("eq", 3, "b"), "input of the grader c (string_check) is 3; give text"),
    ({"type": "length", "max": True}, "max of the grader length (length) is true; give a whole number"),
    ({"type": "length"}, "max of the grader length is not given, nor is min"),
    ({"type": "length", "min": 3, "max": 2}, "max of the grader length is 2; give 3 or more"),
    ({"type": "regex", "pattern": "("}, "pattern of the grader regex is no regular expression"),
    ({"type": "agreement", "threshold": 0.0}, "threshold of the grader agreement is 0; give a share above 0"),
    ({"type": "agreement", "pattern": "("}, "pattern of the grader agreement is no regular expression"),
    ({"type": "numeric", "reference": "1", "tolerance": -1}, "tolerance of the grader numeric is -1; give 0 or more"),
    ({"type": "grounded", "ignore": "x"}, "is 'x'; give a list, each text"),
    ({"type": "text_similarity", "input": "a", "reference": "b", "evaluation_metric": "cosine"},
     "is cosine, which needs a second model"),
    ({"type": "multi", "graders": {}, "calculate_output": "1"}, "graders of the grader multi is empty"),
    ({"type": "multi", "graders": {"a": {"type": "multi", "graders": {}, "calculate_output": "1"}},
      "calculate_output": "a"}, "graders.a of a multi is a multi"),
    ({"type": "multi", "graders": {"a": check("eq", "a", "b")}, "calculate_output": "b"}, "names 'b'"),
])
def test_what_is_no_grader(written, says):
    with pytest.raises(UsageError) as error:
        read_grader(written)
    assert says in str(error.value)


def test_graders_of_files(tmp_path: Path):
    path = tmp_path / "grader.json"
    path.write_text(json.dumps(check("eq", "a", "a")))
    assert load_grader(path).grade([Sample("")], [{}])[0].reward == 1
    for content, says in ((b"{", "is not JSON"), (b"\xff", "is not UTF-8"), (b"[" * 100_000, "is not JSON")):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=says):
            load_grader(path)
    with pytest.raises(UsageError, match="cannot be read"):
        load_grader(tmp_path / "none.json")


def graders_of(page):
    """Those that a page of docs/ has as JSON."""
    import re
    text = (Path(__file__).parents[2] / "docs" / page).read_text("utf-8")
    blocks = re.findall(r"```json\n(.*?)```", text, re.S)
    return [json.loads(block) for block in blocks if block.startswith('{"type"') or block.startswith('{\n  "type"')]


def test_every_type_is_documented_with_an_example():
    """docs/graders.md: the examples are read, and written again to the same."""
    graders = graders_of("graders.md")
    assert {written["type"] for written in graders} == grader_types().keys()
    for written in graders:
        assert read_grader(written).to_json() == written


def test_the_graders_of_the_page_about_rewards_tell_right_from_wrong():
    by_sum, by_r1 = graders_of("rewards.md")
    item = {"prompt": "What is 23 + 48?", "answer": "71"}
    for text, of_sum, of_r1 in (("71", 1, 0.9), ("<think>23 + 40 = 63, 63 + 8 = 71</think> 71", 1, 1),
                                ("<think>23 + 48 = 70</think> 70", 0, 0.1), ("none", 0, 0)):
        assert grade(by_sum, text, item).reward == of_sum
        assert grade(by_r1, text, item).reward == pytest.approx(of_r1)


# ---- agreement -------------------------------------------------------------------------------------------------------


def agreed(texts, item=None, **fields):
    samples = [text if isinstance(text, Sample) else Sample(text) for text in texts]
    return read_grader({"type": "agreement", **fields}).grade(samples, [item or {"prompt": "a"}] * len(texts))


@pytest.mark.parametrize(("texts", "wanted"), [
    (["on", " on\n", "on", "off"], [0.75, 0.75, 0.75, 0]),
    (["on", "off", "on", "off"], [0, 0, 0, 0]),
    (["on", "off", "up", "down"], [0, 0, 0, 0]),
    (['{"a": 1, "b": [2]}', '{"b":[2.0],"a":1}', '{"a": 1, "b": [2, 2]}', '{"a":1,"b":[2]}'], [0.75, 0.75, 0, 0.75]),
    (['{"a": true}', '{"a": 1}', '{"a": "1"}', '{"a": 1.0}'], [0, 0.5, 0, 0.5]),
    (["1,234", "1234.0", "1.234e3", "+1234"], [1, 1, 1, 1]),
    (["42 lamps", "42", "42", "42"], [0, 0.75, 0.75, 0.75]),
    (["", " ", "", "on"], [0, 0, 0, 0.25]),
    (["null", "null", "nothing", "null"], [0.75, 0.75, 0, 0.75]),
])
def test_agreement(texts, wanted):
    """By the rules of `same`: what agrees is equal there, too."""
    found = agreed(texts, threshold=0.25)
    assert [each.reward for each in found] == wanted
    most = [text for text, reward in zip(texts, wanted, strict=True) if reward]
    assert all(is_right(most[0], text) or float(most[0].replace(",", "")) == float(text.replace(",", ""))
               for text in most)
    above = [reward if reward >= 0.75 else 0 for reward in wanted]
    assert [each.reward for each in agreed(texts)] == above


def test_agreement_is_among_the_answers_to_a_row():
    grader = read_grader({"type": "agreement", "threshold": 0.5})
    items = [{"prompt": f"{i % 2}"} for i in range(8)]
    texts = ["a", "b", "a", "c", "d", "b", "a", "b"]
    assert [each.reward for each in grader.grade([Sample(text) for text in texts], items)] == [
        0.75, 0.75, 0.75, 0, 0, 0.75, 0.75, 0.75]
    alone, *others = grader.grade([Sample("on")] * 3, [{"prompt": "b"}, {"prompt": "a"}, {"prompt": "a"}])
    assert (alone.reward, alone.errors) == (0, {"other_error": "there is no other answer to agree with"})
    assert [each.reward for each in others] == [1, 1]


def test_agreement_of_a_part_and_of_answers_that_were_cut():
    texts = ["so it is #### 4", "2 and 2, #### 4.0", "4", Sample("so it is #### 4", finish_reason="length")]
    assert [each.reward for each in agreed(texts, threshold=0.5, pattern=r"#### (\S+)")] == [0.5, 0.5, 0, 0]
    assert [each.reward for each in agreed(["<x>on", "<y>on"], pattern="on|off")] == [1, 1]
    both = {"type": "multi", "calculate_output": "most * form", "graders": {
        "most": {"type": "agreement"}, "form": {"type": "json_schema", "schema": {"type": "object"}}}}
    found = read_grader(both)
    assert found.compares
    assert [each.reward for each in found.grade([Sample("off")] * 2, [{}] * 2)] == [0, 0]
    assert [each.reward for each in found.grade([Sample("{}")] * 2, [{}] * 2)] == [1, 1]
    assert not read_grader(both["graders"]["form"]).compares
