"""Rows that ask and do not answer: of objectives that learn from the model's own answers.

    {"prompt": "...", ...}                                          TRL's prompt-only rows; a list of messages, too
    {"messages": [..., {"role": "user", "content": ...}], ...}      OpenAI's rows of reinforcement fine-tuning

All other keys are what graders know of the row. A row becomes one example without a supervised token: the tokens that
the model is given, and the row itself as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import DataError
from ..llamacpp.tokenizer import Tokenizer
from .around import Instruction, flat_prompt, instructed
from .packing import Example
from .rows import Row, check_messages, json_type, keys_of

EXPECTED = "prompt, or messages that end with the user's"
KEYS = ("prompt", "messages")


def shape_of(row: Row) -> str:
    """prompt or messages; DataError for a row of neither or of both."""
    if not isinstance(row, Mapping):
        raise DataError(f"the row is a JSON {json_type(row)}, not an object", f"expected is {EXPECTED}")
    found = [key for key in KEYS if key in row]
    if len(found) != 1:
        raise DataError(f"the row {'fits two shapes' if found else 'asks nothing'} (its keys: {keys_of(row)})",
                        f"expected is {EXPECTED}")
    return found[0]


def check_learnable(row: Row) -> str:
    """The row's shape, after checking that it asks something. Raises DataError."""
    shape = shape_of(row)
    assert isinstance(row, Mapping)
    asked = row[shape]
    if shape == "prompt" and isinstance(asked, str):
        if not asked.strip():
            raise DataError("the prompt is empty", "write it, or remove the row")
        return shape
    check_messages(asked, shape)
    if asked[-1]["role"] not in ("user", "tool"):
        raise DataError(f"{shape} ends with a message of the {asked[-1]['role']}",
                        "end it with the user's: the model is to answer")
    return shape


def examples_of(row: Row, shape: str, tokenizer: Tokenizer, system: Instruction, _max_length: int,
                ) -> Iterable[Example]:
    """The prompt as it is served; without a chat template as plain text. Raises DataError."""
    check_learnable(row)
    assert isinstance(row, Mapping)
    tokens = np.array(tokenizer.encode(prompt_text(row, shape, tokenizer, system), bos=True), np.int32)
    return [Example(tokens, np.zeros(tokens.size, np.float32), item=json.dumps(row, ensure_ascii=False))]


def prompt_text(row: Mapping[str, Any], shape: str, tokenizer: Tokenizer, system: Instruction) -> str:
    """What the model is given for a row that was checked."""
    asked = row[shape]
    if tokenizer.chat_template is None:
        if not isinstance(asked, str):
            raise DataError("the model has no chat template, which rows of messages need",
                            "use rows whose prompt is text, or a chat model")
        return flat_prompt(asked, "", system)
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    return tokenizer.render(instructed(messages, system), row.get("tools"), add_generation_prompt=True)
