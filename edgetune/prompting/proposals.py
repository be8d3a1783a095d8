"""Instructions that a model proposes, by examples (automatic prompt engineer, Zhou et al., 2023)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from ..data.question import question_text
from ..data.rows import Row
from ..formats.gguf import Gguf
from ..llamacpp.sampling import Sampling
from ..llamacpp.tokenizer import Tokenizer
from ..serving.rollouts.texts import Engine, TokenPrompts, adapter_of, answers
from .instructions import answer_of

SHOWN = 5  # examples of a request
TOKENS = 64  # of an instruction
MOST_LETTERS = 400
TEMPERATURE = 0.8
REQUEST = """Somebody was given an instruction, and answered these messages by it.

{examples}

Write the instruction in one or two sentences. Write nothing else."""


def proposed(gguf: Gguf, tokenizer: Tokenizer, adapter: Path | None, pool: Sequence[Row], count: int, seed: int,
             engine: Engine) -> list[str]:
    """Asks for `count` instructions, each by other examples of the pool, and returns the different ones. Raises the
    errors of `answers`.
    """
    if not count or tokenizer.chat_template is None:
        return []
    chance = random.Random(f"{seed} proposals")
    prompts = [tokenizer.encode(_request(tokenizer, chance.sample(list(pool), min(SHOWN, len(pool)))), bos=True)
               for _ in range(count)]
    asked = TokenPrompts(prompts, [TOKENS] * count, sampling=Sampling(temperature=TEMPERATURE, seed=seed))
    made = sorted(answers(gguf, tokenizer, adapter_of(gguf, adapter), asked, engine),
                  key=lambda answered: answered.rollout.prompt)
    texts = [" ".join(answered.text.split()).strip('"') for answered in made]
    return [text for text in dict.fromkeys(texts) if 0 < len(text) <= MOST_LETTERS]


def _request(tokenizer: Tokenizer, rows: Sequence[Row]) -> str:
    examples = "\n\n".join(f"Message: {question_text(row)}\nAnswer: {answer_of(row)}" for row in rows)
    return tokenizer.render([{"role": "user", "content": REQUEST.format(examples=examples)}],
                            add_generation_prompt=True)
