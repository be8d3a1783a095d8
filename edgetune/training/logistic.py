"""Logistic regression, multinomial or of each label by itself: a head on vectors that do not change.

L = sum of -log p of what is right + |W|^2 / (2 C), p by the soft-max or the sigmoids of W x + b, whose minimum L-BFGS
finds from 0. For vectors of length 1 any C from 3 to 100 gives the same share of right answers within half a point
(docs/results/encoders.md).
Letters: n rows, D the width of a vector, k classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgetuneError, install_hint

C = 10.0
MOST_ITERATIONS = 200
FOLDS = 5
Floats = NDArray[np.float32]
Loss = Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]]
"""From outputs z [n, k], which it may change, to the sum of -log p and its derivative by z."""


def fit(vectors: Floats, targets: NDArray[Any], k: int) -> tuple[Floats, Floats]:
    """W [k, D] and b [k] for vectors [n, D] of length 1 and their targets: the class [n] of each, below k, or 1 where
    it has a label, [n, k], each of which then has its own regression. Raises EdgetuneError without scipy.
    """
    return _fitted(vectors, k, _of_classes(targets) if targets.ndim == 1 else _of_each(targets))


def _of_classes(classes: NDArray[np.int32]) -> Loss:
    rows = np.arange(len(classes))

    def loss(z: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z -= z.max(1, keepdims=True)
        lse = np.log(np.exp(z).sum(1))
        dz = np.exp(z - lse[:, None])
        dz[rows, classes] -= 1
        return float((lse - z[rows, classes]).sum()), dz

    return loss


def _of_each(present: Floats) -> Loss:
    def loss(z: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        soft = np.logaddexp(0, z)  # -log of 1 - p
        return float((soft - present * z).sum()), np.exp(z - soft) - present

    return loss


def _fitted(vectors: Floats, k: int, loss: Loss) -> tuple[Floats, Floats]:
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise EdgetuneError("scipy, which fits the head of an encoder, is not installed",
                            install_hint("encoders")) from None
    x = vectors.astype(np.float64)
    width = x.shape[1]

    def penalized(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = parameters[:k * width].reshape(k, width)
        value, dz = loss(x @ w.T + parameters[k * width:])
        return value + (w * w).sum() / (2 * C), np.concatenate([(dz.T @ x + w / C).ravel(), dz.sum(0)])

    start = np.zeros(k * width + k)
    found = minimize(penalized, start, jac=True, method="L-BFGS-B", options={"maxiter": MOST_ITERATIONS}).x
    return found[:k * width].reshape(k, width).astype(np.float32), found[k * width:].astype(np.float32)


def probabilities(vectors: Floats, weights: Floats, bias: Floats) -> Floats:
    """The probability of each class for each vector, [n, k]."""
    z = vectors @ weights.T + bias
    p: Floats = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p


def out_of_fold(vectors: Floats, classes: NDArray[np.int32], k: int) -> Floats:
    """The same [n, k] of the rows themselves, each by a head that was fitted without the FOLDS-th part that it is in.
    The rows of each class are dealt to the parts in turn.
    """
    fold = np.empty(classes.size, np.int64)
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        fold[rows] = (np.arange(rows.size) + label) % FOLDS
    found = np.empty((classes.size, k), np.float32)
    for number in np.unique(fold):
        out = fold == number
        found[out] = probabilities(vectors[out], *fit(vectors[~out], classes[~out], k))
    return found
