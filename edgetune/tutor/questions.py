"""What the tutor asks: prompts and labelled rows as questions, which of them judge, and which a round takes.

Which side a question is on is a function of what it asks, so that more rows never move one that judged to those that
are learned. Questions that differ in case, spacing and punctuation alone are one question.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from ..data import prompts, rows
from ..data.files import place, read_rows
from ..data.formats import BY_KEYS, recognised
from ..errors import DataError
from ..evaluation.graders.items import asked_messages, prompt_text
from ..llamacpp.tokenizer import Tokenizer

LEARN, DEV, JUDGE = "learn", "dev", "judge"
SIDES = (JUDGE, JUDGE, DEV, LEARN, LEARN, LEARN, LEARN, LEARN, LEARN, LEARN)  # by a digest: a fifth judges
FEW = 20  # questions; with fewer, one or two lucky answers would decide
OPEN = (0.1, 0.9)  # between these rates of right answers there is something to learn


@dataclass(frozen=True)
class Question:
    """key: of what it asks. item: its row, as graders see it. reference: the right answer; "" where nobody gave one.
    agreed: what most answers behind labelled rows say, where that judges in the place of a right one. of: the key of
    the question that it tells again with other values; "" for none.
    """

    key: str
    item: Mapping[str, Any]
    reference: str = ""
    agreed: str = ""
    of: str = ""

    @property
    def text(self) -> str:
        return prompt_text(self.item)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return asked_messages(self.item)

    @property
    def last(self) -> str:
        """What its last message says; "" where that is no text."""
        content = self.messages[-1].get("content")
        return content if isinstance(content, str) else ""

    @property
    def tools(self) -> Any:
        """What the model may call; None for nothing."""
        return self.item.get("tools")

    @property
    def side(self) -> str:
        """Whether it is learned from, chooses how far to go, or judges."""
        return SIDES[int(self.key[:8], 16) % len(SIDES)]

    def asking(self, last: str) -> Question:
        """It with other words in its last message; no question of the pool."""
        if isinstance(self.item.get("prompt"), str):
            return replace(self, item={**self.item, "prompt": last})
        messages = [*self.messages[:-1], {**self.messages[-1], "content": last}]
        return replace(self, item={**self.item, "prompt" if "prompt" in self.item else "messages": messages})

    def with_answer(self, text: str) -> dict[str, Any]:
        """A row that imitates an answer."""
        if isinstance(self.item.get("prompt"), str):
            return {"prompt": self.item["prompt"], "completion": text}
        row: dict[str, Any] = {"messages": [*self.messages, {"role": "assistant", "content": text}]}
        return {**row, "tools": self.tools} if self.tools is not None else row

    def with_evidence(self, text: str, judgment: str) -> dict[str, Any]:
        """A row of an answer, right or with a judgment, beside the right answer, as `data/tutored.py` reads it."""
        is_text = isinstance(self.item.get("prompt"), str)
        asked = {"prompt": self.item["prompt"]} if is_text else {"messages": self.messages}
        row = {**asked, "completion": text, "reference": self.reference, "judgment": judgment or None}
        return {**row, "tools": self.tools} if self.tools is not None and not is_text else row

    def prompt_tokens(self, tokenizer: Tokenizer, system: str | None) -> list[int]:
        """What the model is given."""
        return conversation_tokens(self.messages, tokenizer, system, self.tools)

    def behind(self, shown: Question) -> list[dict[str, Any]]:
        """Messages that ask it after another question and its right answer, behind what the system says."""
        own = self.messages
        begin = sum(1 for _ in takewhile(lambda message: message["role"] == "system", own))
        turns = [message for message in shown.messages if message["role"] != "system"]
        return [*own[:begin], *turns, {"role": "assistant", "content": shown.reference}, *own[begin:]]


def conversation_tokens(messages: Sequence[dict[str, Any]], tokenizer: Tokenizer, system: str | None,
                        tools: Any = None) -> list[int]:
    """The tokens of messages that the model is to answer. Raises DataError where it has no chat template."""
    text = prompts.prompt_text({"messages": list(messages), "tools": tools}, "messages", tokenizer, system) \
        if tokenizer.chat_template is not None or len(messages) > 1 else \
        prompts.prompt_text({"prompt": messages[0]["content"]}, "prompt", tokenizer, system)
    return tokenizer.encode(text, bos=True)


def read_questions(path: Path, tokenizer: Tokenizer, system: str | None, labelled: bool | None) -> list[Question]:
    """The questions of a file, each once: prompts as `--method grpo` takes them, whose completion is the right answer
    where there is one; labelled rows as `--method sft` takes them; None: rows of either kind. Raises DataError, which
    names the line.
    """
    found: dict[str, Question] = {}
    for line, row in read_rows(path):
        try:
            has_answer = _ends_with_answer(row) if labelled is None else labelled
            question = _labelled(row, tokenizer, system) if has_answer else _asked(row)
        except DataError as error:
            raise DataError(f"{place(line, path.name)}: {error.what}", error.hint) from None
        found.setdefault(question.key, question)
    if not found:
        raise DataError(f"{path} holds no rows", "write one JSON object a line")
    return list(found.values())


def _ends_with_answer(row: rows.Row) -> bool:
    """Whether a row of messages ends with the right answer; that of a prompt is its completion in either kind."""
    messages = row.get("messages") if isinstance(row, Mapping) else None
    return bool(messages) and isinstance(messages, list) and messages[-1].get("role") == "assistant"


def _labelled(given: rows.Row, tokenizer: Tokenizer, system: str | None) -> Question:
    row = recognised(given, [rows], BY_KEYS)
    if isinstance(row, str) or rows.shape_of(row) == "text":
        raise DataError("a row of text has no question and answer", "give rows of messages, or prompt and completion")
    rows.check_learnable(row)
    _, reference = rows.prompt_of(row, tokenizer, system)
    return Question(key_of(row), row, reference)


def _asked(row: rows.Row) -> Question:
    prompts.check_learnable(row)
    assert isinstance(row, Mapping)
    reference = row.get("completion", "")
    if not isinstance(reference, str):
        raise DataError(f"completion is a JSON {rows.json_type(reference)}", "write the right answer as text, or none")
    return Question(key_of(row), row, reference.strip())


def key_of(row: Mapping[str, Any]) -> str:
    """32 hexadecimal digits, equal for rows that ask the same in other letters."""
    asked = [[message["role"], " ".join(re.findall(r"\w+", str(message.get("content")).casefold()))]
             for message in asked_messages(row)]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Pool:
    """All questions, by side. A labelled row wins over a prompt that asks the same. bare: of DEV and of JUDGE those
    that only the agreement of answers can judge.
    """

    learn: Sequence[Question]
    dev: Sequence[Question]
    judge: Sequence[Question]
    bare: Mapping[str, Sequence[Question]]
    _by_key: Mapping[str, Question] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Question:
        return self._by_key[key]

    @property
    def labelled(self) -> list[Question]:
        """Those to learn whose right answer is known."""
        return [question for question in self.learn if question.reference]


def pool_of(labelled: Iterable[Question], asked: Iterable[Question], has_grader: bool,
            held: Sequence[Question] = ()) -> Pool:
    """has_grader: whether questions without a right answer can judge. held: those that judge, where the caller decides
    that; all others are learned from, but those without a right answer that choose how far to go. Where fewer than FEW
    questions judge by right answers, the agreement of answers to others judges beside them and chooses how far to go,
    so that more right answers are learned. Raises DataError where nothing can judge.
    """
    known: dict[str, Question] = {}
    for question in (*held, *labelled, *asked):
        known.setdefault(question.key, question)
    apart = {question.key for question in held}
    others = [question for question in known.values() if question.key not in apart]
    judge = [question for question in held or others
             if (question.reference or has_grader) and (held or question.side == JUDGE)]
    is_few = not has_grader and not held and len(judge) < FEW
    learn: list[Question] = []
    dev: list[Question] = []
    bare: dict[str, list[Question]] = {DEV: [], JUDGE: []}
    for question in others:
        can_judge = bool(question.reference) or has_grader
        if is_few and not can_judge and question.side != LEARN:
            bare[question.side].append(question)
        elif can_judge and question.side == DEV and not is_few and not (held and question.reference):
            dev.append(question)
        elif held or not can_judge or question.side != JUDGE:
            learn.append(question)
    if not judge:
        raise DataError("nothing can judge what is learned: no prompt with a known answer is held out, and there is no "
                        "grader", "give more rows with answers (--labelled FILE), or a grader (--grader FILE)")
    if not learn:
        raise DataError("every question is held out to judge", "give more prompts")
    return Pool(learn, dev, judge, bare, known)


def select(pool: Pool, rates: Mapping[str, float], wanted: int, unseen: float, seed: Sequence[int]) -> list[Question]:
    """The questions of a round, in random order: a share that was never asked, then those that are sometimes right,
    then what is left. rates: of the questions asked so far, the newest share of right answers.
    """
    rng = np.random.default_rng(list(seed))
    shuffled = [pool.learn[i] for i in rng.permutation(len(pool.learn))]
    new = [question for question in shuffled if question.key not in rates]
    known = [question for question in shuffled if question.key in rates]
    openly = [question for question in known if OPEN[0] < rates[question.key] < OPEN[1]]
    settled = [question for question in known if not OPEN[0] < rates[question.key] < OPEN[1]]
    most_new = max(round(unseen * wanted), wanted - len(known))
    chosen = new[:most_new]
    for more in (openly, new[most_new:], settled):
        chosen += more[:wanted - len(chosen)]
    return chosen


def of_round(questions: Sequence[Question], number: int, most: int, seed: int) -> list[Question]:
    """Those that judge in round 1, 2, ...: the next ones of a fixed random order, which begins again at its end, so
    that an adapter is not judged by those that the one before was lucky on.
    """
    order = np.random.default_rng([seed, len(questions)]).permutation(len(questions))
    count = min(most, len(order))
    begin = (number - 1) * count
    return [questions[order[(begin + i) % len(order)]] for i in range(count)]
