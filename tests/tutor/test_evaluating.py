"""Who says what an answer is worth, and the safeguards against judges and generators that are of no use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from asked import question

from edgetune.evaluation.graders.agreement import parts_of
from edgetune.evaluation.graders.base import Grade
from edgetune.tutor.agreement import consensus
from edgetune.tutor.answering import Said
from edgetune.tutor.evaluating import auc, collapse, evaluate, probabilities_of_yes
from edgetune.tutor.form import common_form
from edgetune.tutor.options import TutorOptions

OPTIONS = TutorOptions()


def said(*texts: str) -> list[Said]:
    return [Said(text, 3, True) for text in texts]


def test_the_right_answer_is_trusted_most() -> None:
    found = evaluate(question(reference='{"a": 1}'), said('{"a":1.0}', "x", "x", "x"),
                     [Grade(0.0), Grade(1.0), Grade(1.0), Grade(1.0)], 1.0, OPTIONS)
    assert (found.by, found.label, found.weight, found.rate) == ("reference", '{"a": 1}', 1.0, 0.25)
    assert list(found.right) == [True, False, False, False]
    assert evaluate(question(reference="y"), said("x"), [], 1.0, OPTIONS).label == ""


def test_what_passes_a_grader_is_weighted_by_how_many_of_it_agree() -> None:
    grades = [Grade(1.0), Grade(0.5), Grade(1.0), Grade(1.0)]
    found = evaluate(question(), said("2", "9", "3", "2"), grades, 1.0, OPTIONS)
    assert (found.by, found.label, found.rate) == ("grader", "2", 0.75)
    assert found.weight == pytest.approx(2 / 3)
    nothing = evaluate(question(), said("2", "9"), [Grade(0.0), Grade(0.9)], 1.0, OPTIONS)
    assert (nothing.label, nothing.weight) == ("", 0.0)
    assert not evaluate(question(), said("2"), [Grade(1.0, applicable=False)], 1.0, OPTIONS).label


def test_agreement_counts_where_nobody_else_judges() -> None:
    found = evaluate(question(), said('{"a": 1, "b": 2}', '{"b":2,"a":1}', '{"a":1,"b":2.0}', "no"), [], 1.0, OPTIONS)
    assert (found.by, found.label, found.weight) == ("agreement", '{"a": 1, "b": 2}', 0.5 * 0.75)
    assert evaluate(question(), said("1", "2", "3", "4"), [], 1.0, OPTIONS).by == "nobody"
    assert evaluate(question(), said("1", "1", "1"), [], 1.0, OPTIONS).by == "nobody"  # three may agree by chance


def test_a_model_judges_what_is_left() -> None:
    found = evaluate(question(), said("1", "2", "3", "4"), [], 1.0, OPTIONS, yes=[0.2, 0.9, 0.6, 0.1])
    assert (found.by, found.label, found.weight, found.rate) == ("self", "2", 0.25, 0.5)


def test_what_answers_have_in_common() -> None:
    found = consensus(["a", "b", "b", "", "a"])
    assert found
    assert (found.text, found.share, found.places) == ("a", 0.4, (0, 4))
    assert consensus(["", " "]) is None
    assert consensus(["a", "b"], []) is None


def test_the_answer_that_has_most_in_common_with_all() -> None:
    """By Dice's coefficient of values with their paths: no answer is given twice, and the intent is what most say."""
    texts = ['{"intent": "play", "slots": {"artist": "davis", "year": 1959}}',
             '{"intent": "play", "slots": {"artist": "davis"}}', '{"intent": "play", "slots": {"album": "blue"}}',
             '{"intent": "rate", "slots": {"artist": "miles"}}', "no"]
    found = consensus(texts)
    assert found
    assert found.places == (1,)
    assert found.share == pytest.approx((2 * 2 / 5 + 1 + 2 * 1 / 4 + 0 + 0) / 5)
    assert evaluate(question(), said(*texts), [], 1.0, replace(OPTIONS, agreement=0.45)).label == texts[1]
    assert evaluate(question(), said(*texts), [], 1.0, replace(OPTIONS, agreement=0.47)).by == "nobody"


def test_parts() -> None:
    assert parts_of('{"a": [1, 2.0], "b": {"c": true}, "d": {}}') == parts_of('{"d":{},"b":{"c":true},"a":[2,1.0]}')
    assert len(parts_of('{"a": [1, 2], "b": {"c": true}, "d": {}}')) == 4
    assert not parts_of('{"a": 1}') & parts_of('{"a": true, "b": 1}')
    assert parts_of(" 7 ") == parts_of("7.0")
    assert parts_of(" ") == frozenset()


def test_how_often_a_question_is_answered_rightly_counts_answers_that_were_shown_nothing() -> None:
    answers = [*said("x", "y"), *(replace(one, shown="key") for one in said("y", "y"))]
    found = evaluate(question(reference="y"), answers, [], 1.0, OPTIONS)
    assert (found.label, found.rate) == ("y", 0.5)


def test_auc_is_the_mean_rank_of_right_answers() -> None:
    scores = [0.1, 0.4, 0.4, 0.8, 0.3, 0.9] * 5
    right = [False, True, False, True, False, True, True, False] * 3 + [False] * 6
    order = np.sort(scores)
    ranks = (np.searchsorted(order, scores, "left") + np.searchsorted(order, scores, "right") + 1) / 2
    n = sum(right)
    area = (ranks[np.array(right)].sum() - n * (n + 1) / 2) / (n * (len(right) - n))
    assert auc(scores, right) == pytest.approx(area)
    assert auc(scores[:20], [True] * 15 + [False] * 5) is None  # too few wrong ones to know


# ---- safeguards ----


class YesSayer:
    name = "yes"

    def label_probabilities(self, conversations: Sequence[object], _labels: Sequence[str]) -> list[list[float] | None]:
        return [[0.98, 0.02] for _ in conversations]


def test_a_judge_that_says_yes_to_everything_does_not_judge() -> None:
    asked = [question(f"q {i}", "right") for i in range(12)]
    answers = [said("right", "wrong") for _ in asked]
    yes = probabilities_of_yes(YesSayer(), asked, answers)
    measured = auc([p for of in yes for p in of], [True, False] * 12)
    assert measured == 0.5
    assert measured < OPTIONS.min_auc


def test_a_collapsed_generator_is_found() -> None:
    asked = [question(f"q {i}") for i in range(10)]
    assert collapse(asked, [said("ok", "ok") for _ in asked]) == "20 of 20 answers to 10 questions are one and the same"
    assert not collapse(asked, [said(f"{i}", "ok") for i in range(10)])
    assert not collapse(asked[:5], [said("ok") for _ in range(5)])  # few questions may have one answer


def test_one_right_answer_to_all_questions_is_no_collapse() -> None:
    asked = [question(f"q {i}", "ok") for i in range(10)]
    assert not collapse(asked, [said("ok", "ok") for _ in asked])
    asked[0] = question("q 0", "other")
    assert collapse(asked, [said("ok", "ok") for _ in asked])


def test_what_breaks_the_form_of_labelled_answers_has_nothing_in_common() -> None:
    """Four name a field that no row has, two of nine say the same in the known form: a trust of two ninths."""
    form = common_form([question(f"{i}?", json.dumps({"a": i})) for i in range(9)])
    texts = [*['{"b": 1}'] * 4, '{"a": 1}', '{"a": 1}', "no", "no", "no"]
    asked = question("1?")
    found = evaluate(asked, said(*texts), [], 1.0, replace(OPTIONS, agreement=0.2), form=form)
    assert (found.label, found.weight) == ('{"a": 1}', pytest.approx(0.5 * 2 / 9))
    assert evaluate(asked, said(*texts), [], 1.0, replace(OPTIONS, agreement=0.25), form=form).by == "nobody"
    assert evaluate(asked, said(*texts), [], 1.0, replace(OPTIONS, agreement=0.4)).label == '{"b": 1}'
