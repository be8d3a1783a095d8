"""Answers to prompts within the budget of training: several of the model with an adapter, by the engine that trains, or
one of a judge, which is a head on an encoder's vectors, fitted to the labelled rows only; and those that are learned.

The judge is sure of an answer if SURE of the labelled rows that are named as surely are named rightly, by heads that
were fitted without them, and not of what is unlike them (sureness.py). More answers teach more than surer ones.

For each prompt the most frequent answer is learned that passes the grader, on which enough agree, or of which the judge
is sure. Answers agree if they are equal as JSON, as numbers or as text. An answer that was cut off does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....adapters.lora import Lora
from ....data.labelled import are_few, encode, labels_of
from ....errors import DataError
from ....evaluation.graders.agreement import form_of, majority
from ....evaluation.graders.base import Grade
from ....evaluation.graders.sample import Sample
from ....formats.gguf import Gguf
from ....llamacpp.sampling import Sampling
from ....objectives.labelling import HeadTargets
from ....serving.encoder import Encoder
from ....serving.rollouts.scoring import open_scorer
from ....serving.rollouts.texts import TokenPrompts, answers
from ....serving.sureness import Sureness
from ....training import logistic
from ....training.rewards import EngineJudge
from .questions import TutorQuestion
from .setting import RoundSetting

JUDGE_TOKENS = 1024  # most tokens of a question with its answer that a grader shows to the base


@dataclass(frozen=True)
class ModelAnswer:
    """An answer: its text without space around it, its tokens, and whether the model ended it. probability: by the
    judge that gave it, else 0.
    """

    text: str
    tokens: int
    ended: bool
    probability: float = 0.0


def draw(setting: RoundSetting, number: int, questions: Sequence[TutorQuestion],
         pairs: Lora) -> list[list[ModelAnswer]]:
    """Several answers to each question, the same each time. Raises UsageError where memory has room for none."""
    options = setting.options
    sampling = Sampling(temperature=options.temperature, top_k=0, top_p=1.0, min_p=0.0,
                        seed=setting.seed(number, "draw"))
    prompts = [question.prompt_tokens(setting.tokenizer, setting.system) for question in questions]
    asked = TokenPrompts(prompts, [options.max_tokens] * len(prompts), options.samples, sampling)
    found: list[list[Any]] = [[None] * options.samples for _ in prompts]
    for answered in answers(setting.bundle.gguf, setting.tokenizer, pairs, asked, setting.engine):
        setting.look()
        rollout = answered.rollout
        found[rollout.prompt][rollout.sample] = ModelAnswer(answered.text.strip(), int(rollout.tokens.size),
                                                            rollout.ended)
    return found


def graded(setting: RoundSetting, questions: Sequence[TutorQuestion],
           answers: Sequence[Sequence[ModelAnswer]]) -> list[list[Grade]]:
    """A grade of each answer; empty lists without a grader. May ask the base. Raises the grader's EdgetuneError."""
    grader = setting.grader
    if grader is None:
        return [[] for _ in questions]
    if grader.needs_model:
        scorer = open_scorer(setting.bundle.gguf, {}, setting.engine, longest=JUDGE_TOKENS, at_once=JUDGE_TOKENS)
        grader = grader.with_model(EngineJudge(scorer, scorer.run, setting.tokenizer))
    samples = [Sample(one.text, finish_reason="stop" if one.ended else "length") for of in answers for one in of]
    items: list[Mapping[str, Any]] = [question.item for question, of in zip(questions, answers, strict=True)
                                      for _ in of]
    grades = iter(grader.grade(samples, items))
    return [[next(grades) for _ in of] for of in answers]


SURE = 0.8  # share of right answers
NEVER = 2.0  # a probability that no answer has


def named(judge: Gguf, setting: RoundSetting, labelled: Sequence[TutorQuestion],
          asked: Sequence[TutorQuestion]) -> tuple[list[ModelAnswer], float]:
    """The judge's answer to each question with its probability, and the probability from which it is sure.

    labelled: what it learns from. Raises the errors of known_labels.
    """
    labels = known_labels(labelled)
    classes = np.array([labels.index(question.reference) for question in labelled], np.int32)
    encoder = Encoder(judge, setting.config.threads)
    vectors = encoder.vectors([encode(encoder.tokenizer, question.text, encoder.longest).ids
                               for question in (*labelled, *asked)])
    known, new = np.split(vectors, [len(labelled)])
    targets = HeadTargets.of_all(classes)
    head = logistic.fit(known, targets, len(labels))
    p = logistic.probabilities(new, *head)
    found = [ModelAnswer(labels[best], 0, ended=True, probability=float(row[best]))
             for row, best in zip(p, p.argmax(1), strict=True)]
    p = logistic.out_of_fold(known, targets, len(labels))
    sureness = Sureness.of(p.max(1), p.argmax(1) == classes)
    return found, min(sureness.threshold(SURE), NEVER) if sureness else NEVER


def known_labels(labelled: Sequence[TutorQuestion]) -> tuple[str, ...]:
    """The labels that a judge can learn. Raises DataError where most answers occur once, or there is one label."""
    answers = [question.reference for question in labelled]
    if not are_few(answers):
        raise DataError("the judge names labels, and most labelled answers occur once",
                        "leave out --judge, or label more rows")
    return labels_of(answers)


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
