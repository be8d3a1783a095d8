"""Rows of an answer that was found good or bad, in TRL's shape: {"prompt": ..., "completion": ..., "label": true}.

Prompt and completion are text, or lists of messages. A row is one example, whose reward is 1 or 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..errors import DataError
from ..llamacpp.tokenizer import Tokenizer
from .around import Instruction
from .packing import Example
from .prompted import TargetAnswer, text_of, with_keys
from .rows import Row, json_type

EXPECTED = "prompt with completion and label"
SHAPE = "unpaired"


def shape_of(row: Row) -> str:
    label = with_keys(row, ("prompt", "completion", "label"), "is no answer with a label", EXPECTED)["label"]
    if not isinstance(label, bool):
        raise DataError(f"label is a JSON {json_type(label)}", "write true for a good answer, or false")
    return SHAPE


def check_learnable(row: Row) -> str:
    """Its shape. Raises DataError, also for a good answer that is empty."""
    shape = shape_of(row)
    answer = _answer(row)
    answer.row  # noqa: B018 (raises)
    if is_good(row):
        answer.check_good("the completion is empty and its label true", "write the answer, or remove the row")
    return shape


def examples_of(row: Row, _shape: str, tokenizer: Tokenizer, system: Instruction, max_length: int) -> Iterable[Example]:
    return [replace(_answer(row).example(tokenizer, system, max_length), reward=float(is_good(row)))]


def is_good(row: Any) -> bool:
    return row["label"] is True


def _answer(row: Any) -> TargetAnswer:
    return TargetAnswer("completion", text_of(row, "prompt"), text_of(row, "completion"), row.get("tools"))
