"""Rows from the feedback of an Open WebUI server, as its export writes it: a list of records, each with `data` (rating,
comment), `meta` (arena, message_id) and `snapshot` (the whole chat). An administrator downloads it in the settings
under Evaluations, or by GET /api/v1/evaluations/feedbacks/all/export.

What a record gives depends on the shape of the rows: `answers` of thumbs up and of comments that say the right answer;
`labels` of all thumbs; `pairs` of arena votes between answers to one question, and of corrections.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.files import read_rows
from ...data.question import content_text
from ...data.remarks import stated_answer
from ...errors import DataError
from ...options import check_options
from .options import OpenWebuiOptions
from .output import Made, Row, learned_last, without_repeats

NO_CHAT = "holds no chat with its answer"
NOT_RATED = "has no rating of 1 or -1"
UNSAID = "a thumb down that says no right answer"
NO_OTHER = "has no other answer to compare with"
DETAILS = "<details"  # of reasoning and calls, which Open WebUI writes into an answer's text
MOST_TURNS = 1000


@dataclass(frozen=True)
class Rated:
    """A rated answer. prompt: the messages before it. others: other answers to the same question."""

    prompt: list[dict[str, Any]]
    answer: str
    is_good: bool
    correction: str
    others: tuple[str, ...]


def make_from_open_webui(path: Path, options: OpenWebuiOptions) -> Made:
    """Rows of an export. Raises DataError for a file that is none."""
    check_options(options)
    made = Made()
    for _, record in read_rows(path):
        if not isinstance(record, Mapping) or "snapshot" not in record or "data" not in record:
            raise DataError(f"{path.name} is no export of feedback: a record lacks data or snapshot",
                            "export it in Open WebUI's settings, under Evaluations")
        made.read += 1
        if options.model and options.model != _object(record, "data").get("model_id"):
            made.drop("is about another model")
            continue
        found = _rated(record, options)
        if isinstance(found, str):
            made.drop(found)
            continue
        rows = list(_rows(found, options.shape))
        made.rows += rows
        if not rows:
            made.drop(UNSAID if options.shape == "answers" else NO_OTHER)
    without_repeats(made)
    return made


def _rows(rated: Rated, shape: str) -> Iterator[Row]:
    if shape == "labels":
        yield {"prompt": rated.prompt, "completion": _said(rated.answer), "label": rated.is_good}
    elif shape == "answers":
        right = rated.answer if rated.is_good else rated.correction
        if right:
            yield {"messages": learned_last([*rated.prompt, *_said(right)])}
    else:
        for chosen, rejected in _pairs(rated):
            if chosen != rejected:
                yield {"prompt": rated.prompt, "chosen": _said(chosen), "rejected": _said(rejected)}


def _said(answer: str) -> list[Row]:
    return [{"role": "assistant", "content": answer}]


def _pairs(rated: Rated) -> Iterator[tuple[str, str]]:
    """(better, worse): a thumb up wins over each other answer; one down loses to its correction, else to the only other
    one: of several, which is better is not known.
    """
    if rated.is_good:
        yield from ((rated.answer, other) for other in rated.others)
    elif rated.correction:
        yield rated.correction, rated.answer
    elif len(rated.others) == 1:
        yield rated.others[0], rated.answer


def _rated(record: Mapping[str, Any], options: OpenWebuiOptions) -> Rated | str:
    """The rated answer of a record, or why there is none."""
    data = _object(record, "data")
    rating = str(data.get("rating"))
    if rating not in ("1", "-1"):
        return NOT_RATED
    messages = _messages(record)
    rated = messages.get(str(_object(record, "meta").get("message_id")))
    if rated is None or not _answer(rated):
        return NO_CHAT
    prompt = _before(rated, messages)
    if not prompt or prompt[-1]["role"] != "user":
        return NO_CHAT
    siblings = [_answer(other) for id, other in messages.items()
                if other is not rated and other.get("parentId") == rated.get("parentId") and id != rated.get("id")]
    comment = str(data.get("comment") or "").strip() if rating == "-1" else ""
    said = {"none": "", "all": comment, "stated": stated_answer(comment)}[options.comments]
    return Rated(prompt, _answer(rated), rating == "1", said, tuple(dict.fromkeys(filter(None, siblings))))


def _messages(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """{id: message} of the chat as it was when it was rated. Its record may be within another one, as the API has it.
    """
    chat = _object(_object(record, "snapshot"), "chat")
    inner = _object(chat, "chat") or chat
    found = _object(inner, "history").get("messages")
    if not isinstance(found, Mapping):
        listed = inner.get("messages")
        found = {str(each.get("id")): each for each in listed if isinstance(each, Mapping)} \
            if isinstance(listed, Sequence) and not isinstance(listed, str) else {}
    return {str(id): each for id, each in found.items() if isinstance(each, Mapping)}


def _before(message: Mapping[str, Any], messages: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation up to a message, by the ids of parents; empty where it has a part without text."""
    found: list[dict[str, Any]] = []
    parent = messages.get(str(message.get("parentId")))
    while parent is not None and len(found) < MOST_TURNS:
        text = _answer(parent) if parent.get("role") == "assistant" else content_text(parent.get("content")).strip()
        if not text or parent.get("role") not in ("system", "user", "assistant") or parent.get("files"):
            return []
        found.insert(0, {"role": parent["role"], "content": text})
        parent = messages.get(str(parent.get("parentId")))
    return found


def _answer(message: Mapping[str, Any]) -> str:
    """The text of an answer; "" for one with hidden reasoning or calls of tools, which are no text to learn."""
    text = content_text(message.get("content")).strip()
    return "" if DETAILS in text or message.get("role") != "assistant" else text


def _object(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = found.get(key)
    return value if isinstance(value, Mapping) else {}
