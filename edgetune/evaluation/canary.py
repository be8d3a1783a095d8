"""What an adapter does to text that has nothing to do with what it learned: how much more it surprises the model, and
how far what is expected next is from what the base expects. Both by llama.cpp, as the adapter is served.

Letters: T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..llamacpp.divergence import divergence
from ..serving.llama import LlamaModel

FILE = Path(__file__).with_name("canary.txt")
LOGITS = 1 << 22  # that are held of each model at a time
LONGEST = 128  # tokens of a piece
SHORTEST = 16
MOST = 700.0  # of which the exponential is a number


@dataclass(frozen=True)
class Drift:
    """From the base. rise: of the perplexity, as a share; kl: KL(base || adapter), nats a token, over `tokens`.
    perplexity: the base's.
    """

    rise: float
    kl: float
    tokens: int
    perplexity: float = 1.0


def drift(served: LlamaModel, adapter: str | None, texts: Sequence[str]) -> Drift:
    """Of an adapter that is loaded under this name, on texts. None, the base itself, drifts nowhere.

    Raises UsageError for an adapter that is not loaded.
    """
    length = max(SHORTEST, min(LONGEST, LOGITS // served.cache.n_vocab, served.context))
    loss_before = 0.0
    loss_after = 0.0
    kl = 0.0
    positions = 0
    for tokens in _pieces(served, texts, length):
        served.use(None)
        base = served.logits(tokens[:-1])
        served.use(adapter)
        found = divergence(base, served.logits(tokens[:-1]), np.array(tokens[1:], np.int32))
        loss_before += found.source_loss
        loss_after += found.loss
        kl += found.kl
        positions += len(tokens) - 1
    if not positions:
        return Drift(0.0, 0.0, 0)
    rise = math.expm1(min((loss_after - loss_before) / positions, MOST))
    return Drift(rise, kl / positions, positions, math.exp(min(loss_before / positions, MOST)))


def _pieces(served: LlamaModel, texts: Sequence[str], length: int) -> list[list[int]]:
    """The tokens of the texts, `length` at a time; a lone last one is left out."""
    found = []
    for text in texts:
        tokens = served.tokenizer.encode(text, bos=True)
        found += [tokens[i:i + length] for i in range(0, len(tokens), length)]
    return [piece for piece in found if len(piece) > 1]
