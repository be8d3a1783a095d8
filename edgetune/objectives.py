"""Objectives: from the log-probabilities of the supervised tokens to one signed weight a_t = -dL/dlogp_t each.

The engine turns the weights into gradients, dL/dz_t = a_t (softmax(z_t) - onehot(y_t)); an objective is only the rule
that makes them. S supervised tokens.
"""

from __future__ import annotations

import numpy as np


def sft(weights: np.ndarray, total: float) -> np.ndarray:
    """Supervised fine-tuning, L = -(1/N) sum_t w_t logp_t: a [S] = w / N, N = the batch's sum of weights."""
    return np.asarray(weights / total, np.float32)


def sft_loss(logp: np.ndarray, weights: np.ndarray) -> float:
    """The sum (not yet divided by N) of -w_t logp_t, natural log, in double."""
    return -float(np.dot(logp.astype(np.float64), weights.astype(np.float64)))
