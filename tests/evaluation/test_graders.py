"""Graders: OpenAI's documented examples and rules, and the libraries that a metric names, called directly."""

import json
import random
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from graded import check, grade, reward
from rapidfuzz import fuzz, utils

from edgetune.errors import UsageError
from edgetune.evaluation.graders.base import grader_types, load_grader, read_grader
from edgetune.evaluation.graders.sample import Sample

PAIRS = [("fuzzy wuzzy was a bear", "fuzzy wuzzy had no hair"), ("the cat sat on the mat", "the cat sat on the mat"),
         ("It is, on the mat, a cat.", "a cat is on the mat"), ("", "something"), ("completely different", "no word"),
         ("The quick brown fox jumps over the lazy dog today", "The quick brown fox jumped over a lazy dog")]


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
    from rouge_score.rouge_scorer import RougeScorer
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


def test_long_texts_are_compared_within_seconds():
    """rapidfuzz takes minutes for these, in which nobody can interrupt it."""
    words = random.Random(0).choices(["lamp", "light", "on", "off", "hall"], k=8000)
    start = time.monotonic()
    assert similarity("fuzzy_match", " ".join(words[:6000]), " ".join(words[2000:5000])) < 1
    assert time.monotonic() - start < 10


def test_a_table_of_all_pairs_of_words_is_not_made():
    """Two texts of 24,000 letters would take hundreds of MiB."""
    words = random.Random(0).choices(["lamp", "light", "on", "off", "hall"], k=10_000)
    tracemalloc.start()
    try:
        assert 0 < similarity("rouge_l", " ".join(words[:6000]), " ".join(words[4000:])) < 1
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


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
        with pytest.raises(EdgetuneError, match=rf"needs the package {package}, .*; install the extra graders"):
            read_grader(written)


def test_a_threshold_passes_answers_and_leaves_the_reward():
    written = {"type": "text_similarity", "input": "a b", "reference": "a c", "evaluation_metric": "rouge_1",
               "pass_threshold": 0.4}
    assert read_grader(written).passes_at == 0.4
    assert reward(written) == 0.5
    assert read_grader(check("eq", "a", "b")).passes_at == 1


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


def test_graders_of_files(tmp_path):
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
    """docs/reference/graders.md: the examples are read, and written again to the same."""
    graders = graders_of("reference/graders.md")
    assert {written["type"] for written in graders} == grader_types().keys()
    for written in graders:
        assert read_grader(written).to_json() == written


def test_the_graders_of_the_pages_about_rewards_tell_right_from_wrong():
    by_sum, by_r1 = graders_of("how-to/rewards.md") + graders_of("experimental/r1.md")
    item = {"prompt": "What is 23 + 48?", "answer": "71"}
    for text, of_sum, of_r1 in (("71", 1, 0.9), ("<think>23 + 40 = 63, 63 + 8 = 71</think> 71", 1, 1),
                                ("<think>23 + 48 = 70</think> 70", 0, 0.1), ("none", 0, 0)):
        assert grade(by_sum, text, item).reward == of_sum
        assert grade(by_r1, text, item).reward == pytest.approx(of_r1)
