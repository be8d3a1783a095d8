"""Ten answers before and after: what a person can judge without a number."""

from __future__ import annotations

from ..answers import Answers
from ..data import Dataset
from ..rows import prompt_of
from ..tokens import Tokenizer

COUNT, LENGTH = 10, 48  # answers, tokens of each
_ASKED = (
    "What is the capital of France?", "Name three colours.", "What is 7 + 5?", "Write one sentence about the sea.",
    "What does a thermostat do?", "Give a synonym of quick.", "Which planet is closest to the sun?",
    "How do I boil an egg?", "Translate 'good morning' into Spanish.", "What is a computer?",
)


def prompts(rows: Dataset | None, tokenizer: Tokenizer) -> list[str]:
    """Prompt texts, template included: of the first rows that ask something, else ten questions of our own."""
    if rows is not None and rows.asking:
        return [prompt_of(row, tokenizer)[0] for row in rows.asking[:COUNT]]
    if tokenizer.chat_template is None:
        return list(_ASKED)
    return [tokenizer.render([{"role": "user", "content": text}], add_generation_prompt=True) for text in _ASKED]


def answered(model: Answers, asked: list[str]) -> list[str]:
    """The likeliest answer to each, by whatever serves the model."""
    return ["".join(model.generate(prompt, max_tokens=LENGTH)) for prompt in asked]
