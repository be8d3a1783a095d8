"""edgetune.data.yaml_text: what others wrote is read within bounds, or refused in a sentence."""

from contextlib import nullcontext

import pytest
from bounds import bounded_calls, bounded_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_yaml import VALUES, bomb

from edgetune.data.yaml_text import MAX_LEVELS, MAX_VALUES, read_yaml, write_yaml
from edgetune.errors import DataError

yaml = pytest.importorskip("yaml")
ROOM = 64 << 20


@pytest.fixture(params=["libyaml", "python"], autouse=True)
def loader(request, monkeypatch):
    """Both of the parsers that pyyaml may have; the one in Python is too slow for its calls to be counted."""
    if request.param == "python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("pyyaml was built without libyaml")
    return request.param


def refusal(content, calls=100_000, **options):
    """The sentence about a text, which takes little memory and few calls."""
    counted = bounded_calls(calls) if hasattr(yaml, "CSafeLoader") else nullcontext()
    with bounded_memory(ROOM), counted, pytest.raises(DataError) as caught:
        read_yaml(content, "odd.yaml", **options)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert "odd.yaml" in caught.value.what
    return caught.value.what


@pytest.mark.dev
@pytest.mark.parametrize("name", VALUES)
def test_an_odd_value_is_refused(name):
    assert refusal(f"a: {VALUES[name]}\nb: 1\n")


def test_a_bomb_is_refused_in_its_first_line():
    text = bomb("a: {value}", "a: {value}")
    assert len(text) < 500
    assert "line 1 of odd.yaml has the anchor" in refusal(text, calls=10_000)


@pytest.mark.parametrize(("content", "says"), [
    (b"a: b\nc: \xff", "line 2 of odd.yaml is not UTF-8"),
    ("a: b".encode("utf-16"), "is not UTF-8"),
    ("a: 1\nb: \ud800", "line 2 of odd.yaml has half a pair"),
    ("--- a\n--- b", "line 2 of odd.yaml begins a second document"),
    ("a: [b\nc: d\n", "is not YAML"),
    ("a: \0", "is not YAML"),
    ("a: 1\nb: 2\na: 3", "line 3 of odd.yaml has the key 'a' a second time"),
    ("%TAG ! x\n" * 100_000 + "---\na", "line 1 of odd.yaml begins with %"),
    ("[" * (MAX_LEVELS + 1) + "]" * (MAX_LEVELS + 1), "nested more than 100 levels"),
    ("a:" + "".join("\n" + " " * i + "a:" for i in range(1, 300)), "line 101 of odd.yaml is nested more than"),
])
def test_other_texts_are_refused_with_their_place(content, says):
    assert says in refusal(content)


def test_texts_that_are_large_are_refused():
    assert "larger than 1 KiB" in refusal("a" * 1025, limit=1024)
    assert "larger than 1 KiB" in refusal(b"a" * 1025, limit=1024)


@pytest.mark.dev
def test_a_text_with_many_values_is_refused(loader):
    if loader == "libyaml":
        with bounded_memory(ROOM), pytest.raises(DataError, match=f"beyond {MAX_VALUES} values"):
            read_yaml("[" + "a," * 300_000 + "]", "x")


def test_what_is_within_the_bounds_is_read():
    deep = "[" * MAX_LEVELS + "]" * MAX_LEVELS
    assert read_yaml(deep, "x") == yaml.safe_load(deep)
    assert read_yaml("a" * 1024, "x", 1024) == "a" * 1024
    assert read_yaml("", "x") is read_yaml("# nothing\n", "x") is None
    assert read_yaml("\ufeffa: ü".encode(), "x") == {"a": "ü"}


@pytest.mark.parametrize("text", ["2026-13-45", "2026-05-01", "2026-05-01 10:00:00", "=", "<<", "0b_", "0x_", "08"])
def test_a_date_and_what_is_no_number_stay_texts(text):
    assert read_yaml(f"a: {text}", "x") == {"a": text}


SCALARS = ["1", "-1", "+1", "1_000", "010", "0x1f", "0b11", "12:30:45", "1.5", "1e3", "1.0e+3", ".5", ".inf", "-.inf",
           "on", "Off", "YES", "no", "true", "False", "~", "null", "NULL", "", "'on'", '"5"', "a b", "'~'", "1:2:3.5",
           "light.hall", "°C", "'it''s'", '"\\t\\u00e9"', "|\n  two\n  lines\n", ">-\n  one\n  line\n"]


@pytest.mark.parametrize("text", SCALARS)
def test_all_else_means_what_pyyaml_says(text):
    for whole in (f"a: {text}\n", f"- {text}\n"):
        read, known = read_yaml(whole, "x"), yaml.safe_load(whole)
        assert read == known
        assert repr(read) == repr(known)  # 1 is no True


PLAIN = st.recursive(st.none() | st.booleans() | st.integers(-10**9, 10**9) | st.floats(allow_nan=False) | st.text(),
                     lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


@pytest.mark.dev
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(value=PLAIN)
def test_what_is_written_is_read(value):
    text = write_yaml([value, value])  # one object twice
    assert read_yaml(text, "x") == [value, value] == yaml.safe_load(text)
