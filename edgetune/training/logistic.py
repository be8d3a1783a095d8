"""Multinomial logistic regression: the head of a classifier on vectors that do not change.

L = sum of -log softmax(W x + b)[y] + |W|^2 / (2 C), whose minimum L-BFGS finds from 0. For vectors of length 1 any C
from 3 to 100 gives the same share of right answers within half a point (docs/results/encoders.md).
Letters: n rows, D the width of a vector, k classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgetuneError

C = 10.0
MOST_ITERATIONS = 200
FOLDS = 5


def fit(vectors: NDArray[np.float32], classes: NDArray[np.int32], k: int) -> tuple[NDArray[np.float32],
                                                                                   NDArray[np.float32]]:
    """W [k, D] and b [k] for vectors [n, D] of length 1 and their classes [n], each below k. Raises EdgetuneError
    without scipy.
    """
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise EdgetuneError("scipy, which fits the head of an encoder, is not installed",
                            "install edgetune with its extra encoders") from None
    x = vectors.astype(np.float64)
    n, width = x.shape
    rows = np.arange(n)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = parameters[:k * width].reshape(k, width)
        z = x @ w.T + parameters[k * width:]
        z -= z.max(1, keepdims=True)
        lse = np.log(np.exp(z).sum(1))
        dz = np.exp(z - lse[:, None])
        dz[rows, classes] -= 1
        gradient = np.concatenate([(dz.T @ x + w / C).ravel(), dz.sum(0)])
        return float((lse - z[rows, classes]).sum() + (w * w).sum() / (2 * C)), gradient

    found = minimize(loss, np.zeros(k * width + k), jac=True, method="L-BFGS-B", options={"maxiter": MOST_ITERATIONS}).x
    return found[:k * width].reshape(k, width).astype(np.float32), found[k * width:].astype(np.float32)


def probabilities(vectors: NDArray[np.float32], weights: NDArray[np.float32],
                  bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probability of each class for each vector, [n, k]."""
    z = vectors @ weights.T + bias
    p: NDArray[np.float32] = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p


def out_of_fold(vectors: NDArray[np.float32], classes: NDArray[np.int32], k: int) -> NDArray[np.float32]:
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
