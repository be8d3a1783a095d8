"""Answers of the model in its present state, by the engine that trains, within the budget of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..adapters.lora import Lora
from ..data.packing import Example
from ..data.rows import example
from ..data.trees import micro_batches
from ..llamacpp.sampling import Sampling
from ..serving.rollouts.forward import open_decoder
from ..serving.rollouts.texts import Asked, Engine, answers
from ..training.passes import scores
from .setting import Setting

GREEDY = 0.0
SCORED = 512  # tokens that are scored at once, unless one conversation is longer


@dataclass(frozen=True)
class Said:
    """An answer: its text without space around it, its tokens, whether the model ended it. shown: the key of the
    labelled question that stood before the one that is answered; "" for none.
    """

    text: str
    tokens: int
    ended: bool
    shown: str = ""

    def to_json(self) -> dict[str, Any]:
        return vars(self).copy()


def engine_of(setting: Setting) -> Engine:
    config = setting.config
    return Engine(config.memory_here(), config.memory_asked,
                  precision=config.precision, threads=config.threads, backend=config.backend)


def answers_to(setting: Setting, prompts: Sequence[Sequence[int]], pairs: Lora, *, samples: int = 1,
               temperature: float, max_tokens: int, seed: int, strip: bool = True) -> list[list[Said]]:
    """`samples` answers to each prompt, without space around them where `strip`. The same prompts, adapter and seed
    give the same answers.

    Raises UsageError for a prompt that leaves no room in the model's context, and where memory has room for no answer.
    """
    sampling = Sampling(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
    asked = Asked(prompts, [max_tokens] * len(prompts), samples, sampling)
    found: list[list[Any]] = [[None] * samples for _ in prompts]
    for answered in answers(setting.bundle.gguf, setting.tokenizer, pairs, asked, engine_of(setting)):
        setting.look()
        rollout = answered.rollout
        setting.drawn.tokens += rollout.tokens.size
        found[rollout.prompt][rollout.sample] = Said(answered.text.strip() if strip else answered.text,
                                                           int(rollout.tokens.size), rollout.ended)
    return found


def answer_example(setting: Setting, prompt: Sequence[int], answer: str) -> Example:
    """A prompt with an answer, whose tokens and the end of the turn are supervised."""
    tokenizer = setting.tokenizer
    ids = tokenizer.encode(answer, continues=True)
    end = tokenizer.eot if tokenizer.eot is not None else tokenizer.eos
    said = [*ids, *([] if end is None else [end])]
    return example([*prompt, *said], [0.0] * len(prompt) + [1.0] * len(said))


def mean_logp(setting: Setting, prompts: Sequence[Sequence[int]], texts: Sequence[str], pairs: Lora) -> list[float]:
    """Nats a token of each answer to its prompt, by the model with an adapter; exact, so the same in any company."""
    if not prompts:
        return []
    examples = [answer_example(setting, prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    longest = max(one.tokens.size for one in examples)
    decoder = open_decoder(setting.bundle.gguf, pairs, threads=setting.config.threads,
                           max_tokens=max(SCORED, longest), max_length=longest, backend=setting.config.backend)
    setting.look()
    logps = scores(decoder, micro_batches(examples, decoder.run.max_tokens))
    return [float(np.mean(logps[id(one)], dtype=np.float64)) for one in examples]
