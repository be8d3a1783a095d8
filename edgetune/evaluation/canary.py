"""The effect of an adapter on unrelated text: the rise of the perplexity, and the divergence of its predictions from
those of the base. llama.cpp measures both, as the adapter is served.

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
LOGITS_AT_ONCE = 1 << 22  # of each model
PIECE_TOKENS = 128
SHORTEST_PIECE_TOKENS = 16
MAX_EXPONENT = 700.0  # whose exponential is finite


@dataclass(frozen=True)
class Drift:
    """Distance from the base. rise: perplexity's, a share; kl: KL(base || adapter), nats a token; perplexity: base."""

    rise: float
    kl: float
    tokens: int
    perplexity: float = 1.0


def drift(served: LlamaModel, adapter: str | None, texts: Sequence[str]) -> Drift:
    """Measures a loaded adapter on texts; None, the base, drifts nowhere. Raises UsageError for one not loaded."""
    length = max(SHORTEST_PIECE_TOKENS, min(PIECE_TOKENS, LOGITS_AT_ONCE // served.cache.n_vocab, served.context))
    loss_before = 0.0
    loss_after = 0.0
    kl = 0.0
    positions = 0
    encoded = [served.tokenizer.encode(text, bos=True) for text in texts]
    pieces = [tokens[i:i + length] for tokens in encoded for i in range(0, len(tokens), length)]
    for tokens in (piece for piece in pieces if len(piece) > 1):
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
    rise = math.expm1(min((loss_after - loss_before) / positions, MAX_EXPONENT))
    return Drift(rise, kl / positions, positions, math.exp(min(loss_before / positions, MAX_EXPONENT)))
