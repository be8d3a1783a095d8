"""Rows of an answer with what is known about it: a reference answer, and a judgment where it is wrong.

    {"prompt": ..., "completion": ..., "reference": "...", "judgment": "..." or null, "score": 3}

Prompt and completion are text, or lists of messages; `messages` that end with the user's may be written for `prompt`.
A row is one example with two other prompts: its question with the reference in view, and with the judgment in view,
which is empty where there is none. Its reward is the score, 0 without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import DataError
from ..llamacpp.tokenizer import Tokenizer
from .around import Instruction
from .packing import Example
from .prompted import answer_to, check_answer, noted_prompt, prompt_of, with_keys
from .rewards import EXPECTED_REWARD, reward_of
from .rows import Row, json_type

EXPECTED = "prompt with completion and reference, and a judgment where the completion is wrong"
SHAPE = "tutored"
WITH_REFERENCE, WITH_JUDGMENT = range(2)  # the other prompts of an example
NOTES = {"reference": "An expert has answered this as follows:\n{}\n\nAnswer it as the expert would.",
         "judgment": "A weak answer to this was judged as follows:\n{}\n\nGive the weak answer that was judged."}
_NOTHING = np.empty(0, np.int32)


def shape_of(row: Row) -> str:
    prompt_of(with_keys(row, ("completion", "reference"), "is no answer with a reference", EXPECTED))
    return SHAPE


def check_learnable(row: Any) -> str:
    """Its shape. Raises DataError, also for an empty answer or reference."""
    shape = shape_of(row)
    check_answer(row, "write the model's answer, or remove the row")
    if not _note(row, "reference"):
        raise DataError("the reference is empty", "write the right answer, or remove the row")
    _note(row, "judgment")
    score_of(row)
    return shape


def examples_of(row: Any, _shape: str, tokenizer: Tokenizer, system: Instruction, max_length: int) -> Iterable[Example]:
    answer = answer_to(prompt_of(row), row)
    plain = answer.example(tokenizer, system, max_length)
    notes = [_note(row, key) for key in NOTES]
    prompts = tuple(noted_prompt(answer, note, tokenizer, system, max_length) if note else _NOTHING for note in notes)
    return [replace(plain, prompts=prompts, reward=score_of(row))]


def _note(row: Mapping[str, Any], key: str) -> str:
    """The text with the question under this key; empty for null and for a key that is missing."""
    text = row.get(key)
    if text is None or (isinstance(text, str) and not text.strip()):
        return ""
    if not isinstance(text, str):
        raise DataError(f"{key} is a JSON {json_type(text)}", "write text")
    return NOTES[key].format(text.strip())


def score_of(row: Mapping[str, Any]) -> float:
    score = row.get("score")
    if score is None:
        return 0.0
    if isinstance(score, bool) or reward_of(score) is None:
        raise DataError(f"score is {score!r:.40}", EXPECTED_REWARD)
    return float(score)
