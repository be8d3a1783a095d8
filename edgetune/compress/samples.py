"""Ten answers before and after: what a person can judge without a number."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.dataset import Dataset
from ..data.question import question_text
from ..data.rows import prompt_of
from ..llamacpp.tokenizer import Tokenizer
from ..serving.model import ServedModel

COUNT = 10  # answers
LENGTH = 48  # tokens of each
_ASKED = (
    "What is the capital of France?", "Name three colours.", "What is 7 + 5?", "Write one sentence about the sea.",
    "What does a thermostat do?", "Give a synonym of quick.", "Which planet is closest to the sun?",
    "How do I boil an egg?", "Translate 'good morning' into Spanish.", "What is a computer?",
)


@dataclass(frozen=True)
class Sample:
    """question: what a person reads; prompt: what the model is given, template included."""

    question: str
    prompt: str


def samples(rows: Dataset | None, tokenizer: Tokenizer) -> list[Sample]:
    """Questions of the first rows that ask something, else ten questions of our own."""
    if rows is not None and rows.asking:
        return [Sample(question_text(row), prompt_of(row, tokenizer)[0]) for row in rows.asking[:COUNT]]
    if tokenizer.chat_template is None:
        return [Sample(text, text) for text in _ASKED]
    return [Sample(text, tokenizer.render([{"role": "user", "content": text}], add_generation_prompt=True))
            for text in _ASKED]


def answered(model: ServedModel, asked: Sample) -> str:
    """The likeliest answer, by whatever serves the model."""
    return "".join(model.generate(asked.prompt, max_tokens=LENGTH))
