"""Rows of an answer with what is known about it: a reference answer, and a judgment where it is wrong.

    {"prompt": ..., "completion": ..., "reference": "...", "judgment": "..." or null, "score": 3}

Prompt and completion are text, or lists of messages; `messages` that end with the user's may be written for `prompt`.
A row is one example with two other prompts: its question with the reference in view, and with the judgment in view,
which is empty where there is none. Its reward is the score, 0 without one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..llamacpp.tokenizer import Tokenizer
from .packing import Example
from .prompted import Answer, answer_to, check_object, keys_of, prompt_of, with_note
from .rows import Row, json_type

EXPECTED = "prompt with completion and reference, and a judgment where the completion is wrong"
SHAPE = "tutored"
WITH_REFERENCE, WITH_JUDGMENT = range(2)  # the other prompts of an example
NOTES = {"reference": "An expert has answered this as follows:\n{}\n\nAnswer it as the expert would.",
         "judgment": "A weak answer to this was judged as follows:\n{}\n\nGive the weak answer that was judged."}
_NOTHING = np.empty(0, np.int32)


def shape_of(row: Row) -> str:
    check_object(row, EXPECTED)
    assert isinstance(row, Mapping)
    if "completion" not in row or "reference" not in row:
        raise DataError(f"the row is no answer with a reference (its keys: {keys_of(row)})", f"expected is {EXPECTED}")
    prompt_of(row)
    return SHAPE


def check_learnable(row: Row) -> str:
    """Its shape. Raises DataError, also for an empty answer or reference."""
    shape = shape_of(row)
    assert isinstance(row, Mapping)
    answer = answer_to(prompt_of(row), row)
    answer.row  # noqa: B018 (raises)
    if answer.is_blank:
        raise DataError("the completion is empty", "write the model's answer, or remove the row")
    if not _note(row, "reference"):
        raise DataError("the reference is empty", "write the right answer, or remove the row")
    _note(row, "judgment")
    score_of(row)
    return shape


def examples_of(row: Row, _shape: str, tokenizer: Tokenizer, system: str | None, max_length: int) -> Iterable[Example]:
    assert isinstance(row, Mapping)
    prompt = prompt_of(row)
    plain = answer_to(prompt, row).example(tokenizer, system, max_length)
    prompts = []
    for key in NOTES:
        note = _note(row, key)
        prompts.append(_prompt(replace(answer_to(prompt, row), prompt=with_note(prompt, note, tokenizer)), tokenizer,
                               system, max_length) if note else _NOTHING)
    return [replace(plain, prompts=tuple(prompts), reward=score_of(row))]


def _prompt(answer: Answer, tokenizer: Tokenizer, system: str | None, max_length: int) -> NDArray[np.int32]:
    """The tokens before an answer."""
    example = answer.example(tokenizer, system, max_length)
    return example.tokens[:example.begin]


def _note(row: Mapping[str, Any], key: str) -> str:
    """What is put beside the question under this key; empty for null and for a key that is missing."""
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
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise DataError(f"score is {score!r:.40}", "write a finite number")
    return float(score)
