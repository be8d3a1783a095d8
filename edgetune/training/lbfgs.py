"""L-BFGS (Nocedal 1980): the minimum of a smooth, strictly convex function, without its second derivatives.

It is here and not from a library, whose import takes 45 MiB of a budget. P parameters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

KEPT = 6  # steps from which the curvature is known
BYTES = 8 * (9 + KEPT)  # a parameter: 9 arrays of doubles, those of the function included, and KEPT pairs of floats
FLAT = 1e-5  # the greatest part of a gradient at which the minimum is found
LEAST_GAIN = 1e-9  # share of the value by which a step must lower it, or the minimum is found
ENOUGH = 1e-4  # share of the fall that the gradient promises which a step must reach (Armijo)
SHORTEST = 1e-10  # step, as a share of the direction
Doubles = NDArray[np.float64]
Function = Callable[[Doubles], "tuple[float, Doubles]"]
"""From parameters [P] to the value and its gradient [P], a new array."""


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
