"""Sums of low-rank products c_i B_i A_i: their norms, their best approximation of a rank, and what averages miss.

No N x K matrix is made. The squared norm of a sum is a sum over inner products, each of two r x r matrices. Its best
approximation of rank R (Eckart and Young 1936) is found between the columns of all B and the rows of all A, by two QR
decompositions and the SVD of a matrix as wide as all ranks together. All is float64, in the order of the terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....adapters.lora import Pair
from ....errors import NumericsError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Term:
    """factor * b @ a, of b [N, R] and a [R, K]."""

    factor: float
    b: Floats
    a: Floats


def term_of(pair: Pair, share: float = 1.0) -> Term:
    """Returns the update of a pair, times a share."""
    return Term(share * pair.scale, pair.b.astype(np.float64), pair.a.astype(np.float64))


def squared_norm(terms: Sequence[Term]) -> float:
    """Returns the squared Frobenius norm of the sum of these terms: never below 0, not finite if a term is not."""
    b = np.concatenate([term.factor * term.b for term in terms], axis=1)
    a = np.concatenate([term.a for term in terms])
    with np.errstate(invalid="ignore", over="ignore"):
        return max(float(np.sum((b.T @ b) * (a @ a.T))), 0.0)


def best_of_rank(terms: Sequence[Term], rank: int, scale: float) -> tuple[Pair, float]:
    """Returns (the pair of this rank and scale whose update is nearest to the sum, the squared norm of the difference).

    B and A get the same share of each singular value. The largest value of a column of B is positive, so that equal
    sums give equal factors. Raises NumericsError if the sum is not finite.
    """
    left, upper = np.linalg.qr(_columns(terms))
    right, lower = np.linalg.qr(_rows(terms))
    core = upper @ lower.T
    if not np.isfinite(core).all():
        raise NumericsError("the sum of the updates is not finite", "leave out the device whose update is largest")
    u, values, v = np.linalg.svd(core, full_matrices=False)
    kept = min(rank, values.size)
    root = np.sqrt(values[:kept] / scale)
    b = np.zeros((left.shape[0], rank))
    a = np.zeros((rank, right.shape[0]))
    b[:, :kept] = (left @ u[:, :kept]) * root
    a[:kept] = root[:, None] * (v[:kept] @ right.T)
    signs = np.where(np.take_along_axis(b, np.abs(b).argmax(0)[None], 0)[0] < 0.0, -1.0, 1.0)
    pair = Pair((a * signs[:, None]).astype(np.float32), (b * signs).astype(np.float32), scale)
    return pair, float(np.sum(values[kept:] ** 2))


def missed_by_averages(pairs: Sequence[Pair], weights: Sequence[float]) -> float:
    """Returns the squared norm of sum p_i B_i A_i - (sum p_i B_i)(sum p_i A_i): what averaging the factors would lose.

    It is a covariance, sum p_i (B_i - mean B)(A_i - mean A), and is computed as one, which cancels nothing. weights:
    shares p_i, which sum to 1. NaN if the pairs have several ranks, whose factors have no mean.
    """
    if len({pair.rank for pair in pairs}) > 1:
        return math.nan
    b = [pair.b.astype(np.float64) * pair.scale for pair in pairs]
    a = [pair.a.astype(np.float64) for pair in pairs]
    mean_b = _mean(b, weights)
    mean_a = _mean(a, weights)
    return squared_norm([Term(share, one - mean_b, other - mean_a)
                         for share, one, other in zip(weights, b, a, strict=True)])


def _mean(arrays: Sequence[Floats], weights: Sequence[float]) -> Floats:
    return np.asarray(sum(share * array for share, array in zip(weights, arrays, strict=True)))


def _columns(terms: Sequence[Term]) -> NDArray[Any]:
    """All B next to each other, with the root of their factors."""
    return np.concatenate([math.sqrt(abs(term.factor)) * term.b for term in terms], axis=1)


def _rows(terms: Sequence[Term]) -> NDArray[Any]:
    """Returns the transposes of all A next to each other, with the root of their factors and its sign."""
    return np.concatenate([math.copysign(math.sqrt(abs(term.factor)), term.factor) * term.a.T for term in terms],
                          axis=1)
