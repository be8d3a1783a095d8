"""Rows that say which of two answers is better, in TRL's shapes and in OpenAI's; each is a group of two examples, the
chosen answer first.

    {"prompt": ..., "chosen": ..., "rejected": ...}     text, or lists of messages
    {"chosen": ..., "rejected": ...}                    the prompt is what both begin with
    {"input": {"messages": [...], "tools": [...]}, "preferred_output": [...], "non_preferred_output": [...]}

The prompt of two texts ends before the word in which they differ. An answer in messages is one message of the
assistant's. Both answers are tokenized after the same prompt, as they are served.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

from ..errors import DataError
from ..llamacpp.tokenizer import Tokenizer
from .around import Instruction
from .packing import Example
from .prompted import TargetAnswer, Text, in_group, text_of, with_keys
from .rows import Row, json_type

EXPECTED = "prompt with chosen and rejected, or input with preferred_output and non_preferred_output"
SHAPE = "preference"
_TRL = ("chosen", "rejected")
_OPENAI = ("preferred_output", "non_preferred_output")


def is_pair(row: Any) -> bool:
    """Whether the row has the keys of one."""
    return isinstance(row, Mapping) and (all(key in row for key in _TRL) or all(key in row for key in _OPENAI))


def shape_of(row: Row) -> str:
    with_keys(row, () if is_pair(row) else _TRL, "is no pair of answers", EXPECTED)
    return SHAPE


def check_learnable(row: Row) -> str:
    """The shape of a row whose chosen answer says something else than the rejected one. Raises DataError."""
    shape = shape_of(row)
    chosen, rejected = answers_of(row)
    for answer in (chosen, rejected):
        answer.row  # noqa: B018 (raises)
    chosen.check_good(f"{chosen.name} is empty", "write the better answer, or remove the row")
    if chosen.said == rejected.said:
        raise DataError(f"{chosen.name} and {rejected.name} are the same", "remove the row: it prefers nothing")
    return shape


def examples_of(row: Row, _shape: str, tokenizer: Tokenizer, system: Instruction, max_length: int) -> Iterable[Example]:
    """The chosen answer's example, then the rejected one's, at full length. Raises DataError."""
    return in_group([answer.example(tokenizer, system, max_length) for answer in answers_of(row)])


def answers_of(row: Any) -> tuple[TargetAnswer, TargetAnswer]:
    """(chosen, rejected) of a row that `is_pair`. Raises DataError where their prompt cannot be told."""
    if all(key in row for key in _OPENAI):
        return _of_openai(row)
    chosen, rejected = (text_of(row, key) for key in _TRL)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError("one of chosen and rejected is text, the other is messages", "write both in the same way")
    if "prompt" in row:
        prompt = text_of(row, "prompt")
    else:
        prompt, chosen, rejected = _parted(chosen, rejected)
    tools = row.get("tools")
    return TargetAnswer("chosen", prompt, chosen, tools), TargetAnswer("rejected", prompt, rejected, tools)


def _of_openai(row: Mapping[str, Any]) -> tuple[TargetAnswer, TargetAnswer]:
    given = row.get("input")
    if not isinstance(given, Mapping):
        raise DataError(f"input is a JSON {json_type(given)}", 'write {"messages": [...]}')
    if not isinstance(given.get("messages"), list):
        raise DataError("input has no list of messages", 'write {"messages": [...]}')
    for key in _OPENAI:
        if not isinstance(row[key], list):
            raise DataError(f"{key} is a JSON {json_type(row[key])}", "write a list with one assistant message")
    chosen, rejected = (TargetAnswer(key, given["messages"], row[key], given.get("tools")) for key in _OPENAI)
    return chosen, rejected


def _parted(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """(prompt, chosen, rejected) of two that begin alike, as TRL's extract_prompt, but no word is parted."""
    n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    if isinstance(chosen, str):
        n = _end_of_prompt(chosen[:n])
    elif n and n == min(len(chosen), len(rejected)):
        n -= 1  # one continues the other, or both are the same: the last message of both is an answer
    if not n:
        raise DataError("chosen and rejected begin with nothing alike, and there is no prompt",
                        "write the prompt, or answers to the same one")
    for name, rest in (("chosen", chosen[n:]), ("rejected", rejected[n:])):
        if not isinstance(rest, str) and isinstance(rest[0], Mapping) and rest[0].get("role") != "assistant":
            raise DataError(f"chosen and rejected have different prompts: {name}[{n}] has the role "
                            f"{rest[0].get('role')!r:.40}", "a pair is two answers to the same prompt")
    return chosen[:n], chosen[n:], rejected[n:]


def _end_of_prompt(alike: str) -> int:
    """The place where the last word begins, with the space before it."""
    found = re.search(r"\S*\Z", alike)
    assert found
    begin = found.start()
    return begin - 1 if begin and alike[begin - 1] == " " else begin


def chosen_text(row: Any) -> str | None:
    """The better answer, where it is text."""
    answer = answers_of(row)[0].answer
    if isinstance(answer, str):
        return answer
    last: Any = answer[-1] if answer else {}
    content = last.get("content")
    return content if isinstance(content, str) else None
