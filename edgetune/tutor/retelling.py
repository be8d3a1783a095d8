"""Labelled rows told again with other values, those that answers to bare prompts agree on among them.

Of an answer that nobody verified, single values are right more often than the whole: of Snips those that two thirds of
the answers to a prompt name 5 of 6 times, whole answers 1 of 5 times. So what a prompt adds is its values, and what
they are told in is a labelled row, whose structure is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from ..data.retold import Values, parsed, texts_in, told_again, value_in, values_of
from .answering import Said
from .lesson import RETOLD, Taught, taught
from .questions import Question
from .setting import Setting

SURE = 0.65  # of the answers to a prompt name a value in a place


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


def retold(setting: Setting, number: int, values: Values) -> list[Taught]:
    """What round `number` tells again: each labelled row some times, but what comes out as it was."""
    rng = np.random.default_rng(setting.seed(number, "retold"))
    rows = []
    for question in setting.pool.labelled * setting.options.retold if values else []:
        asked, answer = told_again(question.last, question.reference, values, rng)
        if asked != question.last:
            rows.append(taught(setting, question, answer, 1.0, RETOLD, asked=asked))
    return rows
