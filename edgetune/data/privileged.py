"""Rows of an answer and of what a teacher knows besides its question, in TRL's words:

    {"prompt": ..., "completion": ..., "privileged_context": "..."}

Prompt and completion are text, or lists of messages; `messages` that end with the user's may be written for `prompt`.
The context is what the student does not see: a demonstration, a correction, retrieved texts, a judgment. A row is one
example with one other prompt, its question with the context in view.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import DataError
from ..llamacpp.tokenizer import Tokenizer
from .around import Instruction
from .packing import Example
from .prompted import answer_to, check_answer, noted_prompt, prompt_of, with_keys
from .rows import Row, json_type

EXPECTED = "prompt with completion and privileged_context"
SHAPE = "privileged"
KEY = "privileged_context"
NOTE = "This is known about it:\n{}\n\nAnswer with this in mind, without referring to it."


def shape_of(row: Row) -> str:
    prompt_of(with_keys(row, ("completion", KEY), f"has no answer with a {KEY}", EXPECTED))
    return SHAPE


def check_learnable(row: Any) -> str:
    """Its shape. Raises DataError, also for an empty answer or context."""
    shape = shape_of(row)
    check_answer(row, "write an answer, such as the model's own, or remove the row")
    note_of(row)
    return shape


def examples_of(row: Any, _shape: str, tokenizer: Tokenizer, system: Instruction, max_length: int) -> Iterable[Example]:
    answer = answer_to(prompt_of(row), row)
    noted = noted_prompt(answer, note_of(row), tokenizer, system, max_length)
    return [replace(answer.example(tokenizer, system, max_length), prompts=(noted,))]


def note_of(row: Mapping[str, Any]) -> str:
    """The context that the teacher gets with the question. Raises DataError for a context that is no text, or empty."""
    context = row[KEY]
    if not isinstance(context, str):
        raise DataError(f"{KEY} is a JSON {json_type(context)}", "write text")
    if not context.strip():
        raise DataError(f"the {KEY} is empty", "write what the teacher knows, or remove the row")
    return NOTE.format(context.strip())
