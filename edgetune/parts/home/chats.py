"""Rows of a house as conversations, for a model that reads the whole prompt of Home Assistant and writes calls."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...disk import json_lines, replaced
from .entities import Home
from .language import Language
from .prompt import Message, Prompt, prompt_of, through_ollama
from .replies import after_results, as_json, inner
from .results import result_of
from .tools import Call

if TYPE_CHECKING:
    from .rows import Row


def write_chats(path: Path, rows: Sequence[Row], home: Home, language: Language, version: str,
                seed: int = 0) -> list[Row]:
    """Writes a conversation a line, all or none; returns the rows whose tools this version has. seed: of the states in
    results. Raises DiskError, and the errors of prompt_of.
    """
    prompt = prompt_of(home, version)
    rng = random.Random(seed)
    chats = [(row, chat_row(row, home, prompt, language, rng)) for row in rows]
    with replaced(path) as beside:
        beside.write_text(json_lines(chat for _, chat in chats if chat), encoding="utf-8")
    return [row for row, chat in chats if chat]


def chat_row(row: Row, home: Home, prompt: Prompt, language: Language, rng: random.Random) -> Message | None:
    """The question, then calls, their results and a sentence, or an answer in words where no call is right. None where
    a tool is not offered.
    """
    answers = language.texts["answers"]
    items = language.texts["wildcards"]["items"]
    if any(call.name not in prompt.names for call in row.calls):
        return None
    messages: list[Message] = [{"role": "system", "content": prompt.system}, {"role": "user", "content": row.sentence}]
    if row.calls:
        results = [result_of(wish, home, rng, prompt.is_wrapped, items) for wish in row.wishes if wish.tool]
        said = after_results(row.wishes, {call.name for call in row.calls}, [inner(as_json(one)) for one in results],
                             answers)
        messages += [{"role": "assistant", "content": "", "tool_calls": written_calls(row.calls, prompt)},
                     *({"role": "tool", "content": result} for result in results),
                     {"role": "assistant", "content": said}]
    else:
        messages.append({"role": "assistant", "content": answers.get(row.why, "")})
    return {"messages": messages, "tools": [through_ollama(tool) for tool in prompt.tools]}


def written_calls(calls: Sequence[Call], prompt: Prompt) -> list[Message]:
    return [{"type": "function", "function": {"name": prompt.names[call.name], "arguments": call.arguments}}
            for call in calls]
