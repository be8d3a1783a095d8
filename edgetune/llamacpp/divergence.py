"""The distance of two models' distributions of next tokens, by logits. Letters: T positions, V vocabulary."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .sampling import log_softmax

ROWS = 8  # positions whose log-probabilities, float64 [ROWS, V], are held at a time


class DivergenceSums(NamedTuple):
    """Sums over positions. source_loss, loss: -log p of the token that follows, by the source and by the model. kl:
    KL(source || model) in nats, squares: of it. agreed: positions where both find the same token the likeliest.
    """

    source_loss: float
    loss: float
    kl: float
    squares: float
    agreed: float


def divergence(source: NDArray[np.float32], model: NDArray[np.float32], following: NDArray[np.int32]) -> DivergenceSums:
    """Compares logits [T, V]. following: the next tokens, [T] or fewer: losses are of the first positions then."""
    sums = np.zeros(5)
    for begin in range(0, len(source), ROWS):
        p = log_softmax(source[begin : begin + ROWS])
        q = log_softmax(model[begin : begin + ROWS])
        kl = (np.exp(p) * (p - q)).sum(axis=1)
        tokens = following[begin : begin + ROWS]
        at = (np.arange(len(tokens)), tokens)
        sums += (-p[at].sum(), -q[at].sum(), kl.sum(), np.square(kl).sum(), (p.argmax(1) == q.argmax(1)).sum())
    return DivergenceSums(*sums.tolist())
