"""Labelled rows told again with other values, those that answers to bare prompts agree on among them.

Of an answer that nobody verified, single values are right more often than the whole: of Snips those that two thirds of
the answers to a prompt name 5 of 6 times, whole answers 1 of 5 times. So what a prompt adds is its values, and what
they are told in is a labelled row, whose structure is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ..data.answer_schema import parsed
from ..data.retold import Values, texts_in, told_again, value_in, values_of
from .answering import Said
from .lesson import RETOLD, Taught, taught
from .questions import Question
from .setting import Setting

SURE = 0.65  # of the answers to a prompt name a value in a place
JUDGING = 8  # times that a question which judges is told again
TRIES = 4  # for each, as values are drawn that it has already
FEWEST = 5  # questions told again: if all of them are answered better, that is hardly chance


def known_values(setting: Setting, said: Iterable[tuple[Question, Sequence[Said]]]) -> Values:
    """Of labelled rows, and of the fields that these have, what answers to other questions agree on."""
    found = values_of((question.last, question.reference) for question in setting.pool.labelled)
    for question, answers in said:
        if question.reference:
            continue
        named = Counter(part for one in answers for part in dict.fromkeys(texts_in(parsed(one.text))))
        for (place, text), count in named.items():
            value = value_in(question.last, text)
            if value and count >= SURE * len(answers) and value not in found.get(place, [value]):
                found[place].append(value)
    return found


def judging(questions: Sequence[Question], values: Values, seed: int) -> list[Question]:
    """Questions with right answers, told again to judge; none where too few of them can be."""
    rng = np.random.default_rng(seed)
    found = []
    for question in questions:
        told = dict.fromkeys(told_again(question.last, question.reference, values, rng)
                             for _ in range(TRIES * JUDGING if question.reference and values else 0))
        told.pop((question.last, question.reference), None)
        found += [replace(question.asking(asked), reference=answer, of=question.key)
                  for asked, answer in list(told)[:JUDGING]]
    return found if len({one.of for one in found}) >= FEWEST else []


def retold(setting: Setting, number: int, values: Values) -> list[Taught]:
    """What round `number` tells again: each labelled row some times, but what comes out as it was."""
    rng = np.random.default_rng(setting.seed(number, "retold"))
    rows = []
    for question in setting.pool.labelled * setting.options.retold if values else []:
        asked, answer = told_again(question.last, question.reference, values, rng)
        if asked != question.last:
            rows.append(taught(setting, question, answer, 1.0, RETOLD, asked=asked))
    return rows
