"""Which answers are learned, and on whose word."""

import pytest
from asked import question

from edgetune.evaluation.graders.base import Grade
from edgetune.parts.tutor.rounds.answers import ModelAnswer
from edgetune.parts.tutor.rounds.choosing import AGREED, VERIFIED, choose_agreed, choose_graded, collapse
from edgetune.parts.tutor.rounds.results import TrainingRow


def answers(*texts: str):
    return [ModelAnswer(text, 3, True) for text in texts]


def test_four_of_six_agree():
    found = choose_agreed(question(), answers("a", "b", "a", "a", "c", "a"), 0.65)
    assert (found.label, found.source, found.rate) == ("a", AGREED, pytest.approx(4 / 6))
    assert found.right == [True, False, True, True, False, True]
    assert choose_agreed(question(), answers("a", "b", "a", "a", "c", "c"), 0.65).label == ""


def test_answers_are_compared_as_json_and_numbers():
    found = choose_agreed(question(), answers('{"a": 1, "b": 2}', '{"b":2,"a":1}', '{"a":1,"b":2.0}', "no"), 0.65)
    assert (found.label, found.rate) == ('{"a": 1, "b": 2}', 0.75)
    assert choose_agreed(question(), answers("1,234", "1234.0", "x"), 0.6).rate == pytest.approx(2 / 3)


def test_a_cut_answer_says_nothing_and_counts():
    cut = [ModelAnswer("a", 3, False)] * 4
    assert choose_agreed(question(), [*cut, *answers("a", "a")], 0.65).label == ""
    assert choose_agreed(question(), cut, 0.0).label == ""
    assert choose_agreed(question(), answers("", " "), 0.0).label == ""
    assert choose_agreed(question(), answers("a", "b"), 0.0).label == ""  # none is most


def test_of_passing_answers_the_most_frequent_is_learned():
    grades = [Grade(1.0), Grade(0.5), Grade(1.0), Grade(1.0)]
    found = choose_graded(question(), answers("2", "9", "3", "3.0"), grades, 1.0, VERIFIED)
    assert (found.label, found.rate, found.source) == ("3", 0.75, VERIFIED)
    assert choose_graded(question(), answers("2", "9"), [Grade(0.0), Grade(0.9)], 1.0, VERIFIED).label == ""
    assert choose_graded(question(), answers("2"), [Grade(1.0, applicable=False)], 1.0, VERIFIED).label == ""


@pytest.mark.parametrize(("source", "is_verified"), [("labelled", True), ("verified", True), ("judged", False),
                                                     ("agreed", False)])
def test_agreement_and_the_models_own_judgment_verify_nothing(source, is_verified):
    assert TrainingRow("k", "x", source).is_verified == is_verified


def test_one_answer_to_everything_is_a_collapse():
    same = [answers("ok", "ok")] * 10
    assert collapse(same, ["a", "b"]) == "20 of 20 answers to 10 prompts are one and the same"
    assert collapse(same, ["a", "a"]) == ""  # the right answers are one and the same too
    assert collapse(same[:7], ["a", "b"]) == ""
    assert collapse([*same[:8], *[answers("x", "y")] * 2], ["a", "b"]) == ""
