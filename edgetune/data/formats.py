"""Rows as other tools write them, made into the shapes of `rows`: by the keys that a row has, or by named ones.

    {"instruction": ..., "input": ..., "output": ...}                       Alpaca
    {"conversations": [{"from": "human", "value": ...}, ...]}               ShareGPT
    {"question": ..., "answer": ...}, {"prompt": ..., "response": ...}      and so on, see QUESTIONS and ANSWERS
    {"state": ..., "questions": {...}, "expected": {...}}                   typed questions, see decisions.py

What a row's objective reads by itself stays as it is. Keys that say nothing of question and answer are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError, shell_word
from . import rows as supervised_rows
from .decisions import conversation, is_decision, only_asks
from .letters import spelled
from .preferences import is_pair
from .rows import ROLES, Row, RowParser, as_messages, json_type, keys_of, row_text

QUESTIONS = ("prompt", "instruction", "question", "query")
CONTEXTS = ("input", "context")  # what a question is about, after an empty line; input alone is the question
ANSWERS = ("completion", "response", "output", "answer")
SYSTEMS = ("system", "system_prompt")
CONVERSATIONS = "conversations"
HISTORY = "history"  # earlier turns: [[question, answer], ...]
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
            "model": "assistant", "bot": "assistant", "system": "system", "tool": "tool", "observation": "tool"}
NAME_THEM = "name its keys: --prompt-column KEY --completion-column KEY"


@dataclass(frozen=True)
class Columns:
    """The keys of question and answer, where a user names them; with one named, the other has its own name."""

    prompt: str = ""
    completion: str = ""


BY_KEYS = Columns()  # none is named


def recognised(row: Any, parsers: Sequence[RowParser], columns: Columns | None = None) -> Row:
    """The row in a shape that one of the parsers, if any can, reads. columns: None where nobody can name them.

    Raises DataError, with the keys found, for a row that no parser or format knows, or without a named key.
    """
    if columns and columns != BY_KEYS:
        return _named(row, columns)
    if is_decision(row):
        return conversation(row)
    if only_asks(row):
        raise DataError("the row has only questions, and is not in a file that edgetune itself reads",
                        "give each row its questions")
    refusals = []
    for parser in parsers:
        try:
            parser.shape_of(row)
        except DataError as error:
            refusals.append(error)
        else:
            return row  # type: ignore[no-any-return]
    if not isinstance(row, Mapping):
        raise refusals[0]
    if is_pair(row):
        raise DataError("the row is a pair of answers, of which one is better", "learn pairs by the method dpo or orpo")
    if CONVERSATIONS in row:
        return _conversation(row)
    questions = [key for key in QUESTIONS if key in row] or [key for key in CONTEXTS[:1] if key in row]
    answers = [key for key in ANSWERS if key in row]
    if not questions or not answers:
        otherwise = f", or {_named_keys(row)}" if columns and supervised_rows in parsers else ""
        raise DataError(refusals[0].what, refusals[0].hint + otherwise)
    for what, keys in (("question", questions), ("answer", answers)):
        if len(keys) > 1:
            raise DataError(f"the row has several keys that could be its {what} ({', '.join(keys)})",
                            NAME_THEM if columns else "leave all but one out")
    return _pair(row, questions[0], answers[0])


def read_as(row: Row, parser: RowParser) -> list[Row]:
    """The rows that a parser reads in place of a recognised one: itself, but for a model that writes text one for each
    of its typed questions. Raises DataError for a question with too many options for that.
    """
    return spelled(row) if parser is supervised_rows else [row]


def _named_keys(row: Mapping[str, Any]) -> str:
    """The options that name a row's keys; those of its two texts, where it has two."""
    texts = [key for key, value in row.items() if isinstance(value, str)]
    if len(texts) != 2:
        return NAME_THEM
    question, answer = texts
    if question in ANSWERS or answer in QUESTIONS:
        question, answer = answer, question
    return f"name its keys: --prompt-column {shell_word(question)} --completion-column {shell_word(answer)}"


def _named(row: Any, columns: Columns) -> Row:
    prompt = columns.prompt or "prompt"
    completion = columns.completion or "completion"
    if not isinstance(row, Mapping):
        raise DataError(f"the row is a JSON {json_type(row)}, which has no keys", "leave the columns' names out")
    for key, option in ((prompt, "--prompt-column"), (completion, "--completion-column")):
        if key not in row:
            what = f"the row has no key {key!r:.80} (its keys: {keys_of(row)})"
            raise DataError(what, f"name one of them with {option}")
    return {"prompt": row_text(row, prompt), "completion": row_text(row, completion)}


def _pair(row: Mapping[str, Any], question: str, answer: str) -> Row:
    """A row of prompt and completion; of messages, where it has keys for a system message or earlier turns."""
    parts = [row_text(row, question), *(row_text(row, key) for key in CONTEXTS if key != question and row.get(key))]
    prompt = "\n\n".join(part for part in parts if part)
    completion = row_text(row, answer)
    system = [{"role": "system", "content": row_text(row, key)} for key in SYSTEMS if row.get(key)]
    history = _history(row)
    if not any(key in row for key in (*SYSTEMS, HISTORY)):
        return {"prompt": prompt, "completion": completion, **_tools(row)}
    return {"messages": [*system, *history, *as_messages(prompt, completion)], **_tools(row)}


def _tools(row: Mapping[str, Any]) -> dict[str, Any]:
    """The tools of a row, where they are some of OpenAI's form."""
    return {"tools": row["tools"]} if isinstance(row.get("tools"), list) else {}


def _history(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    turns = row.get(HISTORY) or []
    is_right = isinstance(turns, list) and all(isinstance(turn, list) and len(turn) == 2 and all(
        isinstance(text, str) for text in turn) for turn in turns)
    if not is_right:
        raise DataError(f"{HISTORY} is not a list of pairs of texts", "write [[question, answer], ...]")
    return [message for question, answer in turns for message in as_messages(question, answer)]


def _conversation(row: Mapping[str, Any]) -> Row:
    """ShareGPT's turns as messages; turns with role and content are messages already."""
    turns = row[CONVERSATIONS]
    if not isinstance(turns, list) or not turns:
        what = "is empty" if turns == [] else f"is a JSON {json_type(turns)}"
        raise DataError(f"{CONVERSATIONS} {what}", "write a list of objects with from and value")
    system = [{"role": "system", "content": row_text(row, key)} for key in SYSTEMS if row.get(key)]
    messages = [*system, *(_message(f"{CONVERSATIONS}[{i}]", turn) for i, turn in enumerate(turns))]
    return {"messages": messages, **_tools(row)}


def _message(name: str, turn: Any) -> Any:
    if not isinstance(turn, Mapping):
        raise DataError(f"{name} is a JSON {json_type(turn)}", "write an object with from and value")
    if turn.get("role") in ROLES:
        return turn
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise DataError(f"{name} is from {speaker!r:.40} (its keys: {keys_of(turn)})",
                        f"use one of {', '.join(SPEAKERS)}, or rows of messages")
    if not isinstance(turn.get("value"), str):
        raise DataError(f"{name} has a value of JSON type {json_type(turn.get('value'))}", "write text")
    weight = {"weight": turn["weight"]} if "weight" in turn else {}
    return {"role": SPEAKERS[speaker], "content": turn["value"], **weight}
