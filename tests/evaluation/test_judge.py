"""edgetune.evaluation.judge: pairs of answers and what must be said of them."""

import pytest

from edgetune.evaluation.judge import differences, may_become, same


@pytest.mark.parametrize(("expected", "answer", "right"), [
    ('{"a": 1, "b": [2, "x"]}', ' {"b":[2.0,"x"],\n"a":1.0}\n', True),
    ('{"a": 1}', '{"a": true}', False),
    ('{"a": true}', '{"a": 1}', False),
    ('{"a": true}', '{"a": true}', True),
    ('{"a": null}', '{"a": false}', False),
    ('{"a": 1}', '{"a": 1, "b": 2}', False),
    ('{"a": "1"}', '{"a": 1}', False),
    ("[1, 2]", "[2, 1]", False),
    ("[1, 2]", "[1, 2, 3]", False),
    ('{"a": [{"b": 0}]}', '{"a": [{"b": false}]}', False),
    ('{"a": 1}', '{"a": 1} and more', False),
    ('{"a": 1}', "[" * 100_000, False),
    ('{"a": 1}', '{"a": NaN}', False),
    ("1", "1.0", True),
    ("light on", "  light on\n", True),
    ("light on", "light  on", False),
    ("NaN", "NaN", True),
    ("yes", "Yes", False),
])
def test_same(expected, answer, right):
    assert same(expected, answer) is right


@pytest.mark.parametrize(("expected", "begun", "possible"), [
    ('{"a": 1}', "", True),
    ('{"a": 1}', '\n { "b', True),
    ('{"a": 1}', "Here is", False),
    ('{"a": 1}', "[", False),
    ("[1]", "[", True),
    ('"on"', '"off', True),
    ("-1.5", "1", True),
    ("true", "tr", True),
    ("true", "1", False),
    ("light on", " light o", True),
    ("light on", "lamp", False),
])
def test_what_an_answer_may_become(expected, begun, possible):
    assert may_become(expected, begun) is possible


@pytest.mark.parametrize(("expected", "answer", "found"), [
    ('{"a": 1, "b": 2}', '{"a": 1}', ["missing: b"]),
    ('{"a": 1}', '{"a": 1, "b": 2}', ["extra: b"]),
    ('{"a": 1, "b": "on"}', '{"a": 1, "b": "off"}', ['different: b is "off", not "on"']),
    ('{"a": true}', '{"a": 1}', ["different: a is 1, not true"]),
    ('{"a": 1}', '{"a": 1.0}', []),
    ('{"a": {"b": 1, "c": [1, 2]}}', '{"a": {"b": 2, "c": [1]}}', ["different: a.b is 2, not 1", "missing: a.c[1]"]),
    ('{"a": 1, "b": 2}', '{"b": 3, "c": 4}', ["missing: a", "different: b is 3, not 2", "extra: c"]),
    ('{"a": {"b": 1}}', '{"a": [1]}', ['different: a is [1], not {"b": 1}']),
    ("[1]", '{"a": 1}', ['different: {"a": 1}, not [1]']),
    ('{"a": 1}', "sure: 1", ["not JSON"]),
    ("on", "off", []),
])
def test_differences(expected, answer, found):
    assert differences(expected, answer) == found
    assert not (found and same(expected, answer))
