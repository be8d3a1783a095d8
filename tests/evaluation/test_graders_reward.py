"""Reward functions with TRL's signature, and pass@k."""

from itertools import combinations

import pytest

from edgetune.errors import DataError, EdgetuneError, UsageError
from edgetune.evaluation.graders.results import pass_at_k
from edgetune.evaluation.graders.reward import load_reward
from edgetune.evaluation.graders.sample import Sample

SOURCE = """
seen = []

def shorter(completions, limit, **kwargs):
    seen.append((completions, limit, kwargs))
    return [1.0 if len(c) < most else 0.5 for c, most in zip(completions, limit)]

def of_messages(prompts, completions, completion_ids, trainer_state, log_metric, **columns):
    log_metric("x", 1)
    assert columns["other"] == [None, 1][:len(prompts)]
    return [len(c[0]["content"]) + len(p) + len(ids or "") for c, p, ids in zip(completions, prompts, completion_ids)]

async def later(completions):
    return [2 for _ in completions]

def sometimes(completions, **kwargs):
    return [None if c == "skip" else 1 for c in completions]

def raises(completions, **kwargs):
    raise KeyError("answer")

def too_few(completions, **kwargs):
    return [1.0]

def exits(completions, **kwargs):
    raise SystemExit(3)

class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")

def cannot_say(completions, **kwargs):
    raise Unspeakable

def returns(completions, value, **kwargs):
    return value[0] if isinstance(value[0], list) else value

not_a_function = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(SOURCE)
    return path


def rewards(named, samples, items):
    return [grade.reward for grade in load_reward(named).grade([Sample(text) for text in samples], items)]


def test_trls_own_reward_functions():
    """think_format_reward, of completions that are messages."""
    pytest.importorskip("trl")
    item = {"messages": [{"role": "user", "content": "why?"}]}
    said = ["<think>\nso\n</think>\nIt is.", "It is."]
    assert rewards("trl.rewards:think_format_reward", said, [item] * 2) == [1, 0]


def test_texts_where_the_prompt_is_one_and_columns_as_lists(file):
    loaded = load_reward(f"{file}:shorter")
    items = [{"prompt": "a", "limit": 3, "completion": "x"}, {"prompt": "b", "limit": 2, "more": True}]
    assert [grade.reward for grade in loaded.grade([Sample("ab"), Sample("abc")], items)] == [1, 0.5]
    completions, limits, others = loaded.function.__globals__["seen"][0]
    assert (completions, limits) == (["ab", "abc"], [3, 2])
    assert others["prompts"] == ["a", "b"]
    assert others["more"] == [None, True]
    assert "completion" not in others


def test_messages_where_the_row_is_of_messages(file):
    user = {"role": "user", "content": "a"}
    items = [{"messages": [user, {"role": "assistant", "content": "b"}]}, {"prompt": [user], "other": 1}]
    samples = [Sample("abc", tokens=[1, 2]), Sample("x")]
    grades = load_reward(f"{file}:of_messages").grade(samples, items)
    assert [grade.reward for grade in grades] == [3 + 1 + 2, 1 + 1]
    mixed = [{"prompt": "x", "limit": 5}, {"prompt": [user], "limit": 0}]
    assert rewards(f"{file}:shorter", ["abc", "abc"], mixed) == [1, 0.5]


def test_a_coroutine_and_what_does_not_apply(file):
    assert rewards(f"{file}:later", ["x", "y"], [{"prompt": "a"}] * 2) == [2, 2]
    skipped, given = load_reward(f"{file}:sometimes").grade([Sample("skip"), Sample("x")], [{"prompt": "a"}] * 2)
    assert (skipped.reward, skipped.applicable) == (0, False)
    assert (given.reward, given.applicable) == (1, True)


@pytest.mark.parametrize(("name", "column", "says"), [
    ("raises", 0, "the reward function raises raised KeyError: 'answer'"),
    ("too_few", 0, "the reward function too_few returned 1 rewards for 2 completions"),
    ("returns", float("nan"), "the function returns returned is nan"),
    ("returns", "1", "is '1'"), ("returns", [1.0, 1e999], "is inf"),
    ("returns", 1e300, "is 1e+300"), ("returns", 10**400, "to 1,000,000,000"),
    ("returns", -1e10, "is -10000000000.0"), ("exits", 0, "raised SystemExit: 3"),
    ("cannot_say", 0, "raised Unspeakable;"),
    ("returns", [], "returned 0 rewards for 2 completions"), ("returns", [{}, 1], "is an object"),
])
def test_a_function_that_fails(file, name, column, says):
    with pytest.raises(EdgetuneError) as error:
        rewards(f"{file}:{name}", ["x", "y"], [{"prompt": "a", "value": column}] * 2)
    assert says in str(error.value)


def test_a_module_that_exits(tmp_path):
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UsageError, match=r"cannot be imported \(SystemExit: 3\)"):
        load_reward(f"{tmp_path / 'leaves.py'}:f")


@pytest.mark.parametrize(("named", "says"), [
    ("nothing", "write module:function"), ("nowhere.at.all:f", "cannot be imported"), ("math:nothing", "no function"),
    ("{file}:not_a_function", "there is no function not_a_function"), ("other.py:f", "there is no file other.py"),
])
def test_what_is_no_function(named, says, file):
    with pytest.raises(UsageError, match=says):
        load_reward(named.format(file=file))
    with pytest.raises(DataError, match="the row asks nothing"):
        load_reward(f"{file}:later").check_item({"text": "x"})


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (4, 0), (4, 1), (4, 3), (5, 2), (6, 6)])
def test_pass_at_k_is_the_share_of_choices_with_one_that_passes(n, c):
    passed = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        choices = list(combinations(passed, k))
        assert pass_at_k([(n, c)], k) == pytest.approx(sum(map(any, choices)) / len(choices))
    assert pass_at_k([(n, c), (n, n)], 1) == pytest.approx((c / n + 1) / 2)


def test_pass_at_more_than_there_are():
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k([(2, 1)], 3)
