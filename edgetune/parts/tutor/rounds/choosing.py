"""The answers to learn: for each prompt the most frequent one that passes the grader, on which enough agree, or of
which the judge is sure.

Answers agree if they are equal as JSON, as numbers or as text. An answer that was cut off does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ....evaluation.graders.agreement import form_of, majority
from ....evaluation.graders.base import Grade
from .answers import ModelAnswer
from .questions import TutorQuestion

LABELLED = "labelled"  # the sources of a row to learn: a person gave its answer,
VERIFIED = "verified"  # a grader that needs no model passed it,
JUDGED = "judged"  # a grader that asks the model itself passed it, or the judge is sure of it,
AGREED = "agreed"  # or other answers say the same, and nobody verified it
COLLAPSED = 0.9  # share of all answers that are one and the same
MIN_COLLAPSE_QUESTIONS = 8


@dataclass(frozen=True)
class Choice:
    """The choice for one prompt. right: whether each answer passes the grader or is the most frequent one. rate: the
    share of these; with a judge the probability of its answer. label: the answer to learn; "": none. source: of the
    label: a person, a grader, the judge or agreement.
    """

    key: str
    right: Sequence[bool]
    rate: float
    label: str
    source: str


def choose_agreed(question: TutorQuestion, answers: Sequence[ModelAnswer], agreement: float) -> Choice:
    """The answer that most give, if their share is at least `agreement`."""
    forms = [form_of(one.text) if one.ended else None for one in answers]
    form, share = majority(forms)
    right = [form is not None and own == form for own in forms]
    label = answers[right.index(True)].text if form is not None and share >= agreement else ""
    return Choice(question.key, right, share, label, AGREED)


def choose_sure(question: TutorQuestion, answer: ModelAnswer, least: float) -> Choice:
    """The judge's answer, if its probability is at least `least`."""
    is_sure = answer.probability >= least
    return Choice(question.key, [is_sure], answer.probability, answer.text if is_sure else "", JUDGED)


def choose_graded(question: TutorQuestion, answers: Sequence[ModelAnswer], grades: Sequence[Grade], passes_at: float,
                  source: str) -> Choice:
    """The most frequent answer that passes the grader; the first of equally frequent ones."""
    right = [grade.applicable and grade.reward >= passes_at and bool(one.text)
             for one, grade in zip(answers, grades, strict=True)]
    passing = [one.text for one, is_right in zip(answers, right, strict=True) if is_right]
    counts = Counter(form_of(text) for text in passing)
    label = max(passing, key=lambda text: counts[form_of(text)], default="")
    return Choice(question.key, right, sum(right) / len(right), label, source)


def collapse(answers: Sequence[Sequence[ModelAnswer]], references: Sequence[str]) -> str:
    """Why nothing can be learned: nearly all answers are the same, unlike prompts or labels; else ""."""
    if len(answers) < MIN_COLLAPSE_QUESTIONS or len({form_of(text) for text in references}) == 1:
        return ""
    forms = Counter(form_of(one.text) for of in answers for one in of)
    most = max(forms.values())
    if most < COLLAPSED * forms.total():
        return ""
    return f"{most} of {forms.total()} answers to {len(answers)} prompts are one and the same"
