"""Rows that ask, and say what a teacher knows besides the question, in TRL's words:

    {"prompt": ..., "privileged_context": "..."}

The prompt is text, or a list of messages; `messages` that end with the user's may be written for it. The model answers
it itself: a completion, and all other keys, are ignored. A row is one example without a supervised token, with one
other prompt: its question with the context in view, as `privileged` has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ..llamacpp.tokenizer import Tokenizer
from . import prompts
from .around import Instruction
from .packing import Example
from .privileged import KEY, note_of
from .prompted import text_of, with_keys, with_note
from .rows import Row

EXPECTED = "prompt with privileged_context"
SHAPE = "informed"


def shape_of(row: Row) -> str:
    prompts.shape_of(with_keys(row, (KEY,), f"has no {KEY}", EXPECTED))
    return SHAPE


def check_learnable(row: Any) -> str:
    """Its shape. Raises DataError, also for an empty prompt or context."""
    shape = shape_of(row)
    prompts.check_learnable(row)
    note_of(row)
    return shape


def examples_of(row: Any, _shape: str, tokenizer: Tokenizer, system: Instruction, max_length: int) -> Iterable[Example]:
    check_learnable(row)
    asked = prompts.shape_of(row)
    noted = {**row, asked: with_note(text_of(row, asked), note_of(row), tokenizer)}
    (plain,) = prompts.examples_of(row, asked, tokenizer, system, max_length)
    text = prompts.prompt_text(noted, asked, tokenizer, system)
    return [replace(plain, prompts=(np.array(tokenizer.encode(text, bos=True), np.int32),))]
