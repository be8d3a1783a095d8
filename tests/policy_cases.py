"""Answers to prompts, with advantages and rewards: what policy objectives are tested on."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counting import OPTIONS
from decoder_cases import Case, logp_by_peft, random_example
from peft import PeftModel

import edgetune
from edgetune.data.dataset import Dataset, load_rows
from edgetune.data.packing import Example
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.objectives.drawn import Rewarded
from edgetune.training.config import TrainConfig
from edgetune.training.rewards import Reward, RewardedAnswer
from edgetune.training.run import run

PROMPT = 12  # tokens
G = 3


def answers(case: Case, with_old: bool) -> list[Example]:
    """Two prompts with three answers each, all of another length, and advantages; two answers begin alike."""
    rng = np.random.default_rng(11)
    n_vocab = case.decoder.shape.n_vocab
    found = []
    for group in (1, 2):
        prompt = random_example(rng, PROMPT, n_vocab).tokens
        tails = [random_example(rng, n, n_vocab).tokens for n in (9, 5, 7)]
        tails[1][:3] = tails[0][:3]
        for tail in tails:
            weights = np.r_[np.zeros(PROMPT), np.ones(tail.size)].astype(np.float32)
            old = rng.normal(-6, 1, tail.size).astype(np.float32) if with_old else np.empty(0, np.float32)
            found.append(Example(np.r_[prompt, tail].astype(np.int32), weights, group, float(rng.normal()), logp=old))
    return found


def log_probabilities(peft: PeftModel, examples: Sequence[Example]) -> list[torch.Tensor]:
    """Of the answers' tokens, each document by itself."""
    return [logp_by_peft(peft, example.tokens)[PROMPT - 1:] for example in examples]


def near(peft: PeftModel, examples: list[Example]) -> list[Example]:
    """With old log-probabilities such that some ratios are clipped, and others not."""
    rng = np.random.default_rng(12)
    with torch.no_grad():
        logps = log_probabilities(peft, examples)
    return [replace(one, logp=(logp.numpy() + rng.normal(0, 0.2, len(logp))).astype(np.float32)) if one.logp.size else
            one for one, logp in zip(examples, logps, strict=True)]


ROWS = [{"prompt": f"set the light {i} {'on' if i % 2 else 'off'}", "completion": "set it", "wanted": "eiou"[i % 4]}
        for i in range(8)]
LETTERS = {**OPTIONS, "batch_size": 2, "max_length": 64, "precision": "exact", "steps": 8}


def letters(found: Sequence[RewardedAnswer]) -> list[Reward]:
    """The share of an answer's letters that its row asks for."""
    values = [one.text.count(json.loads(one.item)["wanted"]) / max(len(one.text), 1) for one in found]
    return [Reward(value, {"letters": value, "twice": 2 * value}) for value in values]


def prompts(bundle: edgetune.Bundle, objective: Rewarded, rows: Sequence[dict[str, Any]] = ROWS) -> Dataset:
    return load_rows(rows, Tokenizer(bundle.gguf.path), max_length=64, parser=objective.rows)


def go(bundle: edgetune.Bundle, out: Path, objective: Rewarded, **options: Any) -> dict[str, Any]:
    config = TrainConfig(**{**LETTERS, **{name: options.pop(name) for name in list(options) if name in LETTERS}})
    return run(bundle, prompts(bundle, objective), out, config, objective=objective, rewards=letters, **options)
