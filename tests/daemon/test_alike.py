"""edgetune.daemon.learning.like: which questions are the same in other words, by vectors made here."""

import numpy as np
import pytest

from edgetune.daemon.learning import like
from edgetune.daemon.learning.like import MARGIN, MOST, Alike, KnownQuestion, base_of, has_values, is_swapped
from edgetune.serving.neighbours import LEAST

WIDTH = 16


def vector(*cosines):
    """A vector of length 1 with these cosines to the first axes."""
    rest = np.sqrt(1 - sum(cosine**2 for cosine in cosines))
    found = np.zeros(WIDTH, np.float32)
    found[: len(cosines)] = cosines
    found[-1] = rest
    return found


def known(*answers, base=0.0):
    """Questions q0, q1, ... on axes of their own."""
    made = Alike(base)
    for i, answer in enumerate(answers):
        made.learn(KnownQuestion(f"q{i}", f"question {'abcdefgh'[i]}", answer), np.eye(WIDTH, dtype=np.float32)[i])
    return made


def test_the_nearest_question_is_repeated_from_a_likeness_on():
    questions = known("one", "two")
    found, likeness = questions.repeated("else", vector(0.1, LEAST + 0.01))
    assert (found.answer, likeness) == ("two", pytest.approx(LEAST + 0.01, abs=1e-6))
    assert questions.repeated("else", vector(0.1, LEAST - 0.01)) is None
    assert known().repeated("else", vector(1.0)) is None
    scaled = known("one", base=0.5)  # of an encoder by which unrelated questions have a cosine of 0.5
    assert scaled.repeated("else", vector(0.75)) is None
    assert scaled.repeated("else", vector(0.81))[1] == pytest.approx(0.62)


def test_other_answers_that_are_nearly_as_like_make_it_unsure():
    assert known("one", "two").repeated("else", vector(0.7, 0.7 - MARGIN / 2)) is None
    assert known("one", "two").repeated("else", vector(0.8, 0.59)) is not None
    assert known("one", "one").repeated("else", vector(0.7, 0.7 - MARGIN / 2)) is not None


def test_a_newer_answer_replaces_the_earlier_one_and_what_is_forgotten_is_gone():
    questions = known("one", "two")
    questions.learn(KnownQuestion("q0", "question a", "newer"), vector(1.0))
    assert (len(questions), questions.repeated("else", vector(0.9))[0].answer) == (2, "newer")
    questions.forget("q0")
    questions.forget("q7")
    assert len(questions) == 1
    assert questions.repeated("else", vector(0.9)) is None
    assert questions.repeated("else", vector(0.0, 0.9))[0].answer == "two"
    assert [each.key for each, _ in questions.nearest(vector(0.0, 0.9), 5, 0.5)] == ["q1"]


def test_the_oldest_leave(monkeypatch):
    monkeypatch.setattr(like, "MOST", 3)
    questions = known("a", "b", "c", "d", "e")
    assert len(questions) == 3
    assert questions.repeated("else", vector(0.9)) is None
    assert questions.repeated("else", np.eye(WIDTH, dtype=np.float32)[4])[0].answer == "e"
    assert MOST >= 1000


@pytest.mark.parametrize(("one", "other", "expected"), [
    ("when is the paper bin collected?", "When is the glass bin collected?", True),
    ("set the heating to 20 degrees", "set the heating to 21 degrees", True),
    ("what does error E17 mean?", "what does error E18 mean?", True),
    ("where is the team meeting?", "when is the team meeting?", True),
    ("what is the door code", "which code opens the door?", False),
    ("where are the spare keys?", "where is the spare key?", True),  # unsure is not wrong
    ("where are the spare keys?", "and where are the spare keys", False),
    ("wann wird der Papiermüll geholt?", "wann wird der Biomüll geholt?", True),
])
def test_a_word_in_the_place_of_another_makes_another_question(one, other, expected):
    assert is_swapped(one, other) is expected
    assert is_swapped(other, one) is expected


@pytest.mark.parametrize(("answer", "question", "other", "expected"), [
    ('{"device":"light","room":"hall"}', "light in the hall on", "the hall is dark, light please", True),
    ('{"device":"light","room":"hall"}', "light in the hall on", "light in the kitchen on", False),
    ("The code is 4711.", "what is the door code", "which number opens the door?", True),
    ("You may keep 12 books.", "can I take 20 books?", "can I take 30 volumes home?", False),
    ("You may keep 12 books.", "may I take books?", "how many books may I take?", True),
])
def test_values_of_the_answer_must_be_in_the_question(answer, question, other, expected):
    assert has_values(answer, question, other) is expected


def test_each_new_question_tests_the_earlier_ones():
    questions = known(*"abcdefgh")
    before = questions.limit
    for i in range(8):  # in other words each has another answer
        questions.learn(KnownQuestion(f"p{i}", "quite different words", f"other {i}"), vector(*[0.0] * i, 0.8))
    assert before == LEAST
    assert questions.limit > 0.8
    rejected = known("a")
    for i in range(3):
        rejected.learn(KnownQuestion(f"p{i}", "quite different words", "", "a"), vector(0.7))
    assert rejected.limit > 0.7
    assert len(rejected) == 1, "what has no answer is not known"


def test_base_is_the_mean_cosine():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((5, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = np.mean([vectors[i] @ vectors[j] for i in range(5) for j in range(5) if i != j])
    assert base_of(vectors) == pytest.approx(expected, abs=1e-6)
