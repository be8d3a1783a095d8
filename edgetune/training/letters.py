"""What a model that writes text learned of typed questions, whose options have letters (data/letters.py): which they
are, and whether its probabilities hold, by held-out rows. Each question is asked in both orders of its options, as it
is when the model is served.
Letters: n questions, k options of the one with most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.letters import Letters
from ..data.packing import Example
from ..models.base import Passes
from ..serving.calibration import Calibration
from ..serving.lettered import NAME, NOT_MEASURED, Lettered, both_orders
from .batches import Micros
from .passes import score, whole_of


@dataclass(frozen=True)
class _Measured:
    """A held-out question: its two examples, and the place of the right option."""

    letters: list[int]
    right: int
    forwards: Example
    backwards: Example


def facts_of_letters(decoder: Passes, micros: Micros, learned: Sequence[Example],
                     held: Sequence[Example]) -> dict[str, Any]:
    """The facts of an adapter that learned such questions, as JSON; {} of another."""
    questions = {letters.question for example in learned if (letters := Letters.of(example))}
    if not questions:
        return {}
    asked = [found for example in held if (found := _measured(example, micros.max_tokens))]
    known = _calibrated(decoder, micros, asked) if asked else NOT_MEASURED
    return {NAME: Lettered(frozenset(questions), known).to_json()}


def _calibrated(decoder: Passes, micros: Micros, asked: Sequence[_Measured]) -> Calibration:
    logp = _logp_of_letters(decoder, micros, asked)
    p = np.zeros((len(asked), max(len(each.letters) for each in asked)), np.float32)  # 0: no option of the question
    for row, each in zip(p, asked, strict=True):
        row[:len(each.letters)] = both_orders(logp[id(each.forwards)], logp[id(each.backwards)])
    return Calibration.of(p, np.array([each.right for each in asked], np.int32), np.ones(len(asked), np.float32))


def _logp_of_letters(decoder: Passes, micros: Micros, asked: Sequence[_Measured]) -> dict[int, np.ndarray]:
    """log p [k] of its letters after each example, by the example's identity."""
    letters = {id(example): each.letters for each in asked for example in (each.forwards, each.backwards)}
    found: dict[int, np.ndarray] = {}
    for batch in micros.one_by_one(micros.cut([example for each in asked for example in (each.forwards,
                                                                                         each.backwards)])):
        parts = [*whole_of(batch).parts()]
        choices = np.zeros((whole_of(batch).supervised.size, max(map(len, letters.values()))), np.int32)
        for example, part in parts:
            choices[part, :len(letters[id(example)])] = letters[id(example)]
        logp = score(decoder, batch, choices=choices)
        found |= {id(example): logp[part][0, 1:1 + len(letters[id(example)])] for example, part in parts}
    return found


def _measured(example: Example, longest: int) -> _Measured | None:
    letters = Letters.of(example)
    if not letters or max(example.tokens.size, len(letters.backwards) + 1) > longest:
        return None
    first = int(np.flatnonzero(example.weights)[0])
    right = letters.letters.index(int(example.tokens[first]))
    return _Measured(letters.letters, right, _ending(example.tokens[:first].tolist(), letters.letters[right]),
                     _ending(letters.backwards, letters.letters[len(letters.letters) - 1 - right]))


def _ending(tokens: Sequence[int], letter: int) -> Example:
    return Example(np.array([*tokens, letter], np.int32), np.eye(1, len(tokens) + 1, len(tokens), np.float32)[0])
