"""When an adapter is published, of what was measured."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from edgetune.evaluation.acceptance import flip_test
from edgetune.tutor.gate import Decision, Harm, Measured, alpha_of, decide, harmed, repetition, unhealthy, variety
from edgetune.tutor.options import TutorOptions

HARMLESS = Harm(0.001, 0.002, 0.01, 0.01)


def asked(right: str, logp: float | None = None, text: str = "a b c d e") -> list[Measured]:
    """1: a right answer, 0: a wrong one."""
    return [Measured(f"{i}", f"{text} {i}", float(digit), logp, True) for i, digit in enumerate(right)]


def decided(old: list[Measured], new: list[Measured], harm: Harm = HARMLESS, alpha: float = 0.05,
            is_first: bool = False, is_verified: bool = False, **options: float) -> Decision:
    return decide(old, new, harm, alpha, TutorOptions(**options), is_first, is_verified)  # type: ignore[arg-type]


@pytest.mark.parametrize(("wins", "losses", "passes"), [(7, 0, True), (8, 1, True), (9, 2, True), (8, 2, False),
                                                        (5, 2, False), (0, 0, False)])
def test_better_is_what_chance_hardly_makes(wins: int, losses: int, passes: bool) -> None:
    old = asked("0" * wins + "1" * losses + "0" * 30)
    new = asked("1" * wins + "0" * losses + "0" * 30)
    found = decided(old, new)
    assert (found.passed, found.test, found.wins, found.losses) == (passes, "sign", wins, losses)
    if wins:
        falls = [sum(coins) for coins in product((0, 1), repeat=wins + losses)]
        assert found.p == pytest.approx(sum(heads >= wins for heads in falls) / len(falls))


def test_what_is_surely_worse_is_undone() -> None:
    found = decided(asked("1" * 8 + "0" * 30), asked("0" * 38))
    assert (found.passed, found.worse) == (False, True)
    assert not decided(asked("10" * 20), asked("10" * 20)).worse


def test_few_questions_judge_by_how_likely_right_answers_are() -> None:
    found = decided(asked("0000100000", -2.0), asked("0000100000", -1.5))
    assert (found.passed, found.test, found.questions) == (True, "likelihood", 10)
    assert found.p == pytest.approx(2**-10)
    assert "by 10 questions only" in found.reason
    assert not decided(asked("0000110000", -2.0), asked("0000100000", -1.5)).passed  # fewer are right
    assert not decided(asked("0000100000"), asked("0000100000")).passed  # and where nothing is known, nothing passes


def agreed(values: list[float], logp: float | None = None) -> list[Measured]:
    return [Measured(f"bare {i}", f"a b c d e {i}", value, logp, True, agreed=True) for i, value in enumerate(values)]


def test_few_questions_are_judged_beside_what_most_answers_say() -> None:
    """Of 30 held-out questions nobody knows the right answer. What is known may not become worse."""
    old = [*asked("100", -2.0), *agreed([0.5] * 30)]
    nearer = agreed([0.7] * 12 + [0.3] * 3 + [0.5] * 15)
    found = decided(old, [*asked("100", -2.5), *nearer])
    assert (found.passed, found.test, found.wins, found.losses) == (True, "agreement", 12, 3)
    assert found.p == pytest.approx(sum(math.comb(15, k) for k in range(12, 16)) / 2**15)
    assert "1 of 3 held-out questions right, 1 before, by 3 questions only; 12 other answers" in found.reason
    assert not decided(old, [*asked("000", -1.0), *nearer]).passed
    assert not decided(old, [*asked("100", -1.0), *agreed([0.7] * 8 + [0.3] * 7 + [0.5] * 15)]).passed
    assert decided(old, [*asked("100", -1.0), *agreed([0.3] * 12 + [0.5] * 18)]).worse


def again(values: list[list[float]]) -> list[Measured]:
    """values: of each question those of its telling again."""
    return [Measured(f"{i} {j}", f"a b c d e {i} {j}", value, None, True, of=f"{i}")
            for i, told in enumerate(values) for j, value in enumerate(told)]


def test_few_questions_are_judged_told_again() -> None:
    """Each of them counts once, by its mean, however often it was told. What is known may not become worse."""
    old = [*asked("100000", -2.0), *again([[0.5] * 8] * 6)]
    better = again([[0.5] * 7 + [0.6]] * 6)
    found = decided(old, [*asked("100000", -2.5), *better])
    assert (found.passed, found.test, found.wins, found.losses, found.p) == (True, "retold", 6, 0, 2**-6)
    assert "1 of 6 held-out questions right, 1 before, by 6 questions only; told again" in found.reason
    assert not decided(old, [*asked("000000", -1.0), *better]).passed
    mixed = again([[0.9] * 8] * 3 + [[0.4] * 8] * 3)
    found = decided(old, [*asked("100000", -1.0), *mixed])
    assert (found.passed, found.wins, found.losses) == (False, 3, 3)
    assert found.p == pytest.approx(flip_test([0.4] * 3 + [-0.1] * 3))
    found = decided(old, [*asked("100000", -1.0), *again([[0.1] * 8] * 6)])
    assert (found.passed, found.worse) == (False, True)
    beside = decided([*old, *agreed([0.5] * 30)], [*asked("100000", -2.5), *better, *agreed([0.1] * 30)])
    assert (beside.passed, beside.test) == (True, "retold")  # right answers say more than what answers agree on


def test_what_is_known_to_be_right_need_only_be_rather_better() -> None:
    """By few questions told again alone; --verified-alpha 0 asks as much of it as of anything."""
    old = [*asked("100000", -2.0), *again([[0.5] * 8] * 6)]
    mixed = [*asked("100000", -2.0), *again([[0.9] * 8] * 3 + [[0.4] * 8] * 3)]
    assert not decided(old, mixed).passed
    found = decided(old, mixed, is_verified=True)
    assert (found.passed, found.worse, found.alpha) == (True, False, 0.5)
    assert "rather better than worse (p 0.12, asked 0.5)" in found.reason
    assert not decided(old, mixed, is_verified=True, verified_alpha=0.0).passed
    assert not decided(old, old, is_verified=True).passed  # nothing changed
    worse = [*asked("100000", -2.0), *again([[0.1] * 8] * 3 + [[0.6] * 8] * 3)]
    assert not decided(old, worse, is_verified=True).passed
    assert not decided(old, [*asked("000000", -2.0), *mixed[6:]], is_verified=True).passed
    bare = [*asked("100", -2.0), *agreed([0.7] * 8 + [0.3] * 7 + [0.5] * 15)]
    assert not decided([*asked("100", -2.0), *agreed([0.5] * 30)], bare, is_verified=True).passed


def test_many_questions_judge_alone() -> None:
    old = [*asked("0" * 30, -2.0), *agreed([0.5] * 30)]
    found = decided(old, [*asked("0" * 30, -2.0), *agreed([0.7] * 30)])
    assert (found.passed, found.test, found.wins) == (False, "sign", 0)


def test_flip_test_counts_all_signs() -> None:
    values = np.random.default_rng(0).normal(0.4, 1, 9)
    sums = [float(np.dot(signs, values)) for signs in product((1, -1), repeat=9)]
    assert flip_test(values.tolist()) == pytest.approx(np.mean([found >= values.sum() - 1e-9 for found in sums]))
    assert flip_test([]) == 1
    assert flip_test([0.0] * 5) == 1


def test_repeated_tests_spend_alpha() -> None:
    """The k-th test takes alpha / k (k + 1), and k begins again where half of the questions are new."""
    same = [["a", "b", "c", "d"]] * 3
    assert [alpha_of(0.1, same[:k], same[0]) for k in range(4)] == pytest.approx([0.05, 0.1 / 6, 0.1 / 12, 0.1 / 20])
    assert alpha_of(0.1, same, ["a", "b", "x", "y"]) == pytest.approx(0.05)
    assert alpha_of(0.1, same, ["a", "b", "c", "y"]) == pytest.approx(0.1 / 20)
    assert sum(0.1 / (k * (k + 1)) for k in range(1, 10_000)) < 0.1


@pytest.mark.parametrize(("harm", "says"), [
    (replace(HARMLESS, rise=0.03), "unrelated text surprises it 3.0% more than the base, 2.0% are allowed"),
    (replace(HARMLESS, kl=0.3), "0.300 nats a token from the base, 0.1 are allowed"),
    (replace(HARMLESS, change=0.2), "changes a weight by 20% of its norm, 10% are allowed"),
    (replace(HARMLESS, change=math.inf), "numbers are not finite"),
    (replace(HARMLESS, gap=0.5), "llama.cpp and the trainer differ by 0.5 nats a token, 0.25 are allowed")])
def test_harm_refuses_what_is_better(harm: Harm, says: str) -> None:
    found = decided(asked("0" * 40), asked("1" * 40), harm)
    assert not found.passed
    assert says in found.reason
    assert harmed(HARMLESS, TutorOptions()) == ""


def test_what_an_earlier_adapter_did_is_not_charged_again() -> None:
    far = Harm(0.3, 0.3, 0.01, 0.01, rise_before=0.3, kl_before=0.3)
    assert harmed(far, TutorOptions()) == ""
    assert "30.1% more than the base, 30.0% are allowed" in harmed(replace(far, rise=0.301), TutorOptions())


def test_answers_stay_healthy() -> None:
    old = asked("0" * 30, text='{"a": "some words here that are all different"}')
    longer = [replace(one, text=one.text * 3) for one in old]
    endless = [replace(one, ended=False) for one in old]
    looping = [replace(one, text="it is so " * 5) for one in old]
    prose = [replace(one, text="a") for one in asked("0" * 30)]
    json = [replace(one, text="[1]") for one in old]
    assert "letters in the mean" in unhealthy(old, longer)
    assert unhealthy(old, endless) == "0% of its answers end, 100% before"
    assert "phrases repeat" in unhealthy(old, looping)
    assert unhealthy(json, [replace(one, text="[1}") for one in json]) == "30 of its answers are no longer JSON"
    assert unhealthy(prose, prose) == ""
    various = [replace(one, text=f"x{i} y{i} z{i}") for i, one in enumerate(old)]
    alike = [replace(one, text="xx yy zz") for one in old]
    assert "pairs of words are different" in unhealthy(various, alike)


def test_the_first_adapter_may_change_how_answers_look() -> None:
    old = asked("0" * 30, text="a long answer of a model that was never told how to answer, and goes on and on")
    new = asked("1" * 30, text="yes")
    assert decided(old, new, is_first=True).passed
    assert not decided(old, new).passed


def test_repetition_and_variety() -> None:
    assert repetition(["a b c d a b c d"]) == pytest.approx(1 / 5)
    assert repetition(["a b c"]) == 0
    assert variety(["a b a b", "a b"]) == pytest.approx(2 / 4)
    assert variety(["a"]) == 1
