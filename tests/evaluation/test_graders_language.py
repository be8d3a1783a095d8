"""What graders are written with: templates, and formulas beside Python's own values of them."""

import json
import math

import pytest
from examples import examples
from graded import check, grade, reward
from hypothesis import example, given
from hypothesis import strategies as st

from edgetune.errors import DataError, UsageError
from edgetune.evaluation.graders.base import read_grader
from edgetune.evaluation.graders.formula import FUNCTIONS, NoValueError, parse_formula
from edgetune.evaluation.graders.sample import Sample, Ungraded
from edgetune.evaluation.graders.template import parse_template

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


@examples(40)
@given(st.text(alphabet="{} item.sample_output_json[0]\"'ab", max_size=60) | st.text(max_size=40),
       st.text(max_size=20) | VALUES.map(json.dumps), st.dictionaries(st.sampled_from("ab"), VALUES))
def test_no_template_and_no_answer_raises_anything_else(text, said, item):
    try:
        template = parse_template(text, "t")
    except UsageError:
        return
    errors = {}
    try:
        template.render(Sample(said), item)
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
    ("a + d", "names 'd'"), ("a +", "read"), ("(a", "read"), ("a b", "read"), ("", "read"), ("(a, b)", "read"),
    ("a ** b", "read"), ("max(*a)", "read"), ("a.real", r"at '\.real'"), ("__import__('os')", "calls|at"),
    ("log(a, b)", "2 values"), ("eval(a)", "calls 'eval'"),
    ("min()", "0 values"), ("a if b else c", "read"), ("(" * 400 + "a" + ")" * 400, "read"),
    ("-" * 40 + "a", "more than 30 levels"), ("a+" * 1200 + "a", "the limit is 2000"), ("a % b", "at '% b'"),
])
def test_what_is_no_formula(text, says):
    with pytest.raises(UsageError, match=says):
        parse_formula(text, NAMES)


@pytest.mark.parametrize("formula", ["10 ^ 300 * a", "-(10 ^ 10) * a", "10 ^ 400 * a"])
def test_a_reward_beyond_what_learning_bears_is_an_error_of_the_answer(formula):
    written = {"type": "multi", "graders": {"a": check("eq", "x", "x")}, "calculate_output": formula}
    found = grade(written, "x", {})
    assert found.reward == 0
    assert found.errors == {"formula_parse_error": True}


def test_a_threshold_of_hundreds_of_digits_is_no_number():
    with pytest.raises(UsageError, match="pass_threshold of the grader"):
        read_grader({"type": "text_similarity", "input": "a", "reference": "b", "evaluation_metric": "fuzzy_match",
                     "pass_threshold": 10**401})


def test_a_formula_without_a_value_is_an_error_of_the_answer():
    written = {"type": "multi", "graders": {"a": check("eq", "{{sample.output_text}}", "x")},
               "calculate_output": "1 / a"}
    assert reward(written, "x") == 1
    found = grade(written, "y")
    assert (found.reward, found.errors, found.parts) == (0, {"formula_parse_error": True}, {"a": 0})
    for text in ("9 ^ 9 ^ 9", "floor(9 ^ 300) * floor(9 ^ 300)", "log(a)", "sqrt(a - 1)", "(a - 1) ^ 0.5", "exp(1000)"):
        assert grade({**written, "calculate_output": text}, "y").errors == {"formula_parse_error": True}
