"""Wrong answers to questions whose right answer is known: the model says what is wrong, and answers again.

A judgment is text by the model itself, which sees the question, its wrong answer and the right one. It may not give the
right answer away: what it quotes of it is masked. It is kept only if it helps, that is if the right answer is likelier
after it than after being told "that is wrong" alone. The revision is written without the right answer in view, and is
kept only if it is right. Where none is, the model answers with the right answer as a hint (STaR, Zelikman et al. 2022,
arXiv 2203.14465); that is kept if it is right, and likely enough without the hint.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..adapters.lora import Lora
from ..evaluation.judge import NOT_JSON, parse_json, same
from .answering import Said, answers_to, mean_logp
from .questions import Question, conversation_tokens
from .setting import Conversation, Setting

MASK = "..."
JUDGMENT_TOKENS = 64
SHORTEST = 3  # letters of a part of the right answer that is worth masking
LIKELY = -2.0  # nats a token that an answer written with a hint must have without it
WRONG = "That answer is wrong."
AGAIN = "Answer the question again."


@dataclass(frozen=True)
class Correction:
    """Of one wrong answer. judgment: as it was kept, masked, "" if none was; helps: nats a token by which the right
    answer is likelier with it. leaked: whether it named parts of the right answer. revision: the answer after it;
    hinted: whether the right answer was in view. kept: whether it is right, and learned.
    """

    key: str
    wrong: str
    judgment: str
    helps: float
    leaked: bool
    revision: str
    hinted: bool
    kept: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def correct(setting: Setting, number: int, wrong: Sequence[tuple[Question, Said]], pairs: Lora) -> list[Correction]:
    """A correction of each wrong answer, by the model with an adapter. Round `number` gives the seeds."""
    if not wrong:
        return []
    judgments = _judgments(setting, number, wrong, pairs)
    masked = [mask(text, question) for text, (question, _) in zip(judgments, wrong, strict=True)]
    helps = _helps(setting, wrong, masked, pairs)
    useful = [text if gain > 0 else "" for text, gain in zip(masked, helps, strict=True)]
    revisions = _answers(setting, number, "revision", [revise(question.messages, one.text, text)
                                                       for (question, one), text in zip(wrong, useful, strict=True)],
                         pairs)
    found = [Correction(question.key, one.text, useful[i], helps[i], masked[i] != judgments[i], revisions[i].text,
                        False, bool(useful[i]) and same(question.reference, revisions[i].text))
             for i, (question, one) in enumerate(wrong)]
    return _with_hints(setting, number, wrong, found, pairs)


def _judgments(setting: Setting, number: int, wrong: Sequence[tuple[Question, Said]], pairs: Lora) -> list[str]:
    asked = [_what_is_wrong(question, one.text) for question, one in wrong]
    said = _answers(setting, number, "judgment", asked, pairs, JUDGMENT_TOKENS)
    return [" ".join(one.text.split()) for one in said]


def _helps(setting: Setting, wrong: Sequence[tuple[Question, Said]], judgments: Sequence[str],
           pairs: Lora) -> list[float]:
    """Nats a token by which each judgment makes the right answer likelier."""
    said = [*judgments, *[""] * len(wrong)]
    prompts = [_tokens(setting, revise(question.messages, one.text, text))
               for (question, one), text in zip([*wrong, *wrong], said, strict=True)]
    logps = mean_logp(setting, prompts, [question.reference for question, _ in wrong] * 2, pairs)
    after = logps[:len(wrong)]
    before = logps[len(wrong):]
    return [with_it - without if text else 0.0
            for text, with_it, without in zip(judgments, after, before, strict=True)]


def _with_hints(setting: Setting, number: int, wrong: Sequence[tuple[Question, Said]], found: list[Correction],
                pairs: Lora) -> list[Correction]:
    left = [i for i, one in enumerate(found) if not one.kept]
    asked = [_with_hint(wrong[i][0]) for i in left]
    said = _answers(setting, number, "hint", asked, pairs)
    right = [i for i, one in zip(left, said, strict=True) if one.text and same(wrong[i][0].reference, one.text)]
    texts = {i: one.text for i, one in zip(left, said, strict=True)}
    likely = mean_logp(setting, [_tokens(setting, wrong[i][0].messages) for i in right], [texts[i] for i in right],
                       pairs)
    for i, logp in zip(right, likely, strict=True):
        if logp >= LIKELY:
            found[i] = replace(found[i], revision=texts[i], hinted=True, kept=True)
    return found


def _answers(setting: Setting, number: int, purpose: str, asked: Sequence[Conversation], pairs: Lora,
             max_tokens: int = 0) -> list[Said]:
    if not asked:
        return []
    prompts = [_tokens(setting, messages) for messages in asked]
    options = setting.options
    said = answers_to(setting, prompts, pairs, temperature=options.temperature,
                      max_tokens=max_tokens or options.max_tokens, seed=setting.seed(number, purpose))
    return [of[0] for of in said]


def _tokens(setting: Setting, messages: Conversation) -> list[int]:
    return conversation_tokens(messages, setting.tokenizer, setting.system)


# ---- what is said to the model ---------------------------------------------------------------------------------------


def revise(messages: Conversation, wrong: str, judgment: str) -> list[dict[str, Any]]:
    """A conversation that asks for a second answer. judgment: "" to say only that the first is wrong."""
    said = " ".join(part for part in (WRONG, judgment, AGAIN) if part)
    return [*messages, {"role": "assistant", "content": wrong}, {"role": "user", "content": said}]


def _what_is_wrong(question: Question, wrong: str) -> list[dict[str, Any]]:
    text = (f"A student was asked a question. Question, answers and hints are only quoted.\n\n"
            f"Question:\n{question.text}\n\nThe student's wrong answer:\n{wrong}\n\nThe right answer:\n"
            f"{question.reference}\n\nTell the student in one sentence what is wrong, without saying the right answer.")
    return [{"role": "user", "content": text}]


def _with_hint(question: Question) -> list[dict[str, Any]]:
    *before, last = question.messages
    hint = f"{last.get('content')}\n\nHint: the right answer is {question.reference}"
    return [*before, {**last, "content": hint}]


# ---- leaks -----------------------------------------------------------------------------------------------------------


def mask(judgment: str, question: Question) -> str:
    """A judgment without the parts of the right answer that neither the question nor common words have."""
    for part in sorted(secrets(question), key=len, reverse=True):
        judgment = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", MASK, judgment, flags=re.IGNORECASE)
    return judgment


def secrets(question: Question) -> set[str]:
    """What would give the right answer away: itself, and of JSON every value that the question does not say."""
    value = parse_json(question.reference)
    parts = {question.reference} if value is NOT_JSON else {question.reference, *_values(value)}
    asked = question.text.casefold()
    return {part for part in parts if (len(part) >= SHORTEST or part.isdigit()) and part.casefold() not in asked}


def _values(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _values(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _values(inner)]
    return [value if isinstance(value, str) else str(value)]
