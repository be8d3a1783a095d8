"""Rows that ask, as `prompts` has them, and are answered twice: once, and again where the model is asked to look at its
answer, in the words of `attempts`.

An example has one other prompt: that of its second answer, with an empty first one in its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..llamacpp.tokenizer import Tokenizer
from . import prompts
from .around import Instruction
from .attempts import asked_again, check_chat
from .packing import Example
from .prompts import EXPECTED, check_learnable, shape_of
from .rows import Row, as_messages

__all__ = ["EXPECTED", "check_learnable", "examples_of", "second_prompt", "shape_of"]


def examples_of(row: Row, shape: str, tokenizer: Tokenizer, system: Instruction, max_length: int) -> Iterable[Example]:
    """Raises DataError, also for a model without a chat template."""
    check_chat(tokenizer)
    (first,) = prompts.examples_of(row, shape, tokenizer, system, max_length)
    return [replace(first, prompts=(second_prompt(first.item, "", tokenizer, system),))]


def second_prompt(item: str, answer: str, tokenizer: Tokenizer, system: Instruction) -> NDArray[np.int32]:
    """The tokens after which the model answers again. item: the row as JSON; answer: its first answer."""
    row = json.loads(item)
    asked = row[shape_of(row)]
    said = as_messages(asked, answer) if isinstance(asked, str) else [*asked, *as_messages("", answer)[1:]]
    row = {**row, "messages": asked_again(said)}
    return np.array(tokenizer.encode(prompts.prompt_text(row, "messages", tokenizer, system), bos=True), np.int32)
