"""Logistic regression, multinomial or of each label by itself: a head on vectors that do not change.

L = sum of -s log p of what is right + |W|^2 / (2 C), s the share with which a row counts, p by the soft-max or the
sigmoids of W x + b, whose minimum L-BFGS finds from 0. For vectors of length 1 many labels of few rows want a large C,
and labels that vectors hardly tell apart a small one (docs/results/encoders.md): `best_c` chooses. Rows are computed in
blocks of BLOCK bytes, so that a fit takes no memory that grows with them.
L-BFGS (Nocedal 1980) needs no second derivatives. It is here and not from a library, whose import takes 45 MiB of a
budget. Letters: P parameters, n rows, D the width of a vector, k classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..objectives.labelling import HeadTargets

C = 10.0
CHOICES = (1.0, 3.0, 10.0, 30.0, 100.0)  # of C
MOST_CHOOSING = 2000  # targets of which C is chosen by FOLDS parts; of more by the first part alone
MOST_ITERATIONS = 200
FOLDS = 5
BLOCK = 2 << 20  # bytes of what is computed of the rows together, about
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Loss = Callable[[Doubles, NDArray[Any]], "tuple[Doubles, Doubles]"]
"""From outputs z [b, k], which it may change, and targets [b] or [b, k] to -log p [b] and its derivative by z [b, k].
"""
KEPT = 6  # steps from which the curvature is known
BYTES = 8 * (9 + KEPT)  # a parameter: 9 arrays of doubles, those of the function included, and KEPT pairs of floats
FLAT = 1e-5  # the greatest part of a gradient at which the minimum is found
TINY = 1e-30  # the least probability whose logarithm is taken
LEAST_GAIN = 1e-9  # share of the value by which a step must lower it, or the minimum is found
ENOUGH = 1e-4  # share of the fall that the gradient promises which a step must reach (Armijo)
SHORTEST = 1e-10  # step, as a share of the direction
Function = Callable[[Doubles], "tuple[float, Doubles]"]
"""From parameters [P] to the value and its gradient [P], a new array."""


def fit(vectors: Floats, targets: HeadTargets, k: int, c: float = C,
        start: tuple[Floats, Floats] | None = None) -> tuple[Floats, Floats]:
    """W [k, D] and b [k] for vectors [n, D] of length 1 and their targets: classes below k, or 1 where a row has a
    label, each of which then has its own regression. start: a W and b near the minimum, such as those of another c.
    """
    loss = _of_classes if targets.values.ndim == 1 else _of_each
    width = vectors.shape[1]

    def penalized(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = parameters[:k * width].reshape(k, width)
        value = 0.0
        gradient = np.zeros(k * width + k)
        dw = gradient[:k * width].reshape(k, width)
        db = gradient[k * width:]
        for part in _blocks(len(targets.rows), width, k):
            x = vectors[targets.rows[part]].astype(np.float64)
            shares = targets.shares[part].astype(np.float64)
            losses, dz = loss(x @ w.T + parameters[k * width:], targets.values[part])
            dz *= shares[:, None]
            value += float((losses * shares).sum())
            dw += dz.T @ x
            db += dz.sum(0)
        dw += w / c
        return value + float(np.einsum("ij,ij->", w, w)) / (2 * c), gradient

    begin = np.zeros(k * width + k) if start is None else np.concatenate([start[0].ravel(), start[1]]).astype(float)
    found = minimum(penalized, begin, MOST_ITERATIONS)
    return found[:k * width].reshape(k, width).astype(np.float32), found[k * width:].astype(np.float32)


def fit_bytes(width: int, k: int) -> int:
    """Bytes that a fit of k classes takes at most, besides vectors and targets."""
    return BYTES * (width + 1) * k + max(2 * BLOCK, 8 * (width + 4 * k))


def _blocks(n: int, width: int, k: int) -> Iterator[slice]:
    size = max(1, BLOCK // (8 * (width + 4 * k)))
    return (slice(begin, begin + size) for begin in range(0, n, size))


def _of_classes(z: NDArray[np.float64], classes: NDArray[np.int32]) -> tuple[Doubles, Doubles]:
    rows = np.arange(len(classes))
    z -= z.max(1, keepdims=True)
    right = z[rows, classes]
    dz = np.exp(z, out=z)
    total = dz.sum(1)
    dz /= total[:, None]
    dz[rows, classes] -= 1
    return np.log(total) - right, dz


def _of_each(z: NDArray[np.float64], present: Floats) -> tuple[Doubles, Doubles]:
    soft = np.logaddexp(0, z)  # -log of 1 - p
    return (soft - present * z).sum(1), np.exp(z - soft) - present


def probabilities(vectors: Floats, weights: Floats, bias: Floats) -> Floats:
    """The probability of each class for each vector, [n, k]."""
    z = vectors @ weights.T + bias
    p: Floats = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p


def best_c(vectors: Floats, targets: HeadTargets, k: int) -> float:
    """The one of CHOICES with the greatest log p of the targets by heads that were fitted without them. Targets whose
    label no other part has say nothing; C where all are so.
    """
    lost = np.zeros(len(CHOICES))
    fold = _parts(vectors, targets)
    numbers = np.unique(fold)
    for number in numbers[:1] if len(fold) > MOST_CHOOSING else numbers:
        learned = targets.some(fold != number)
        rest = targets.some((fold == number) & np.isin(targets.values, learned.values))
        head = None
        for place, c in enumerate(CHOICES):
            head = fit(vectors, learned, k, c, head)
            p = probabilities(vectors[rest.rows], *head)[np.arange(len(rest.rows)), rest.values]
            lost[place] -= float((rest.shares * np.log(np.maximum(p, TINY))).sum())
    return CHOICES[int(lost.argmin())] if lost.any() else C


def folds(vectors: Floats, targets: HeadTargets, k: int,
          c: float = C) -> Iterator[tuple[NDArray[np.intp], Floats]]:
    """Some targets at a time: which they are [b], and the probabilities [b, k] by a head that was fitted without the
    FOLDS-th part that they are in.
    """
    fold = _parts(vectors, targets)
    for number in np.unique(fold):
        head = fit(vectors, targets.some(fold != number), k, c)
        out = np.flatnonzero(fold == number)
        for part in _blocks(len(out), vectors.shape[1], k):
            yield out[part], probabilities(vectors[targets.rows[out[part]]], *head)


def _parts(vectors: Floats, targets: HeadTargets) -> NDArray[np.int64]:
    """The part of each target. Those of each class are dealt to the parts in turn. Those of one vector, as of one row,
    stay together.
    """
    fold = np.empty(targets.rows.size, np.int64)
    numbers: dict[bytes, int] = {}
    same = np.array([numbers.setdefault(vectors[row].tobytes(), len(numbers)) for row in targets.rows], np.int64)
    firsts = np.unique(same, return_index=True)[1]  # of each vector its first target
    for label in np.unique(targets.values[firsts]):
        own = np.sort(firsts[targets.values[firsts] == label])
        fold[own] = (np.arange(own.size) + label) % FOLDS
    found: NDArray[np.int64] = fold[firsts[same]]
    return found


def out_of_fold(vectors: Floats, targets: HeadTargets, k: int, c: float = C) -> Floats:
    """The probabilities [n, k] of all targets by `folds`."""
    found = np.empty((targets.rows.size, k), np.float32)
    for chosen, p in folds(vectors, targets, k, c):
        found[chosen] = p
    return found


def distinct(vectors: Floats) -> NDArray[np.intp]:
    """The number of each vector that no earlier one equals, ascending."""
    found: dict[bytes, int] = {}
    for row, vector in enumerate(vectors):
        found.setdefault(vector.tobytes(), row)
    return np.array([*found.values()], np.intp)


def minimum(function: Function, start: Doubles, most: int) -> Doubles:
    """The parameters [P] at the minimum, after `most` steps from `start` [P] at most."""
    pairs: deque[tuple[NDArray[np.float32], NDArray[np.float32]]] = deque(maxlen=KEPT)
    x = start
    value, gradient = function(x)
    for _ in range(most):
        if np.abs(gradient).max() <= FLAT:
            break
        direction = _direction(gradient, pairs)
        step = 1.0 if pairs else min(1.0, 1 / float(np.linalg.norm(gradient)))
        slope = float(gradient @ direction)
        there = x + step * direction
        found, new = function(there)
        while found > value + ENOUGH * step * slope and step > SHORTEST:
            step /= 2
            there = x + step * direction
            found, new = function(there)
        if found > value:
            break
        gain = value - found
        pairs.append(((there - x).astype(np.float32), (new - gradient).astype(np.float32)))
        x, value, gradient = there, found, new
        if gain <= LEAST_GAIN * max(abs(value), 1.0):
            break
    return x


def _direction(gradient: Doubles, pairs: deque[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> Doubles:
    """Minus the inverse of the second derivatives, as the pairs (step, change of the gradient) tell it, times the
    gradient: by two loops.
    """
    direction = -gradient
    shares = []
    for moved, change in reversed(pairs):
        share = _dot(moved, direction) / _dot(moved, change)
        shares.append(share)
        direction -= np.float32(share) * change
    if pairs:
        moved, change = pairs[-1]
        direction *= _dot(moved, change) / _dot(change, change)
    for (moved, change), share in zip(pairs, reversed(shares), strict=True):
        direction += np.float32(share - _dot(change, direction) / _dot(moved, change)) * moved
    return direction


def _dot(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(np.einsum("i,i->", a, b, dtype=np.float64))
