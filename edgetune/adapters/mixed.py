"""An adapter between two others: of the rank of one, as near as that rank allows to a weighted mean of what they do.

What an adapter does to a projection is delta W = scale * B A, which is not linear in A and B: the mean of two is a
product of their stacked factors, of both ranks together. It is brought back to one rank by the best approximation
(Eckart and Young, 1936), from the QR factors of the stacked matrices, so that no matrix [N, K] is ever made. R rank, K
inputs and N outputs of a projection.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError
from .lora import Lora, Pair

Floats = NDArray[np.float32]


def between(first: Lora, second: Lora, share: float) -> Lora:
    """first + share * (second - first), with the projections, ranks and scales of `second`. first may be empty, which
    changes nothing. Raises MismatchError for projections that `first` alone changes.
    """
    if missing := sorted(set(first) - set(second)):
        raise MismatchError(f"one adapter changes {missing[0]}, the other does not", "give adapters of the same kind")
    if share == 1:
        return {name: Pair(pair.a.copy(), pair.b.copy(), pair.scale) for name, pair in second.items()}
    return {name: _between(first.get(name), pair, share) for name, pair in second.items()}


def _between(first: Pair | None, second: Pair, share: float) -> Pair:
    if first is None:
        return Pair(second.a.copy(), second.b * np.float32(share), second.scale)
    b = np.concatenate([first.b * (first.scale * (1 - share)), second.b * (second.scale * share)], axis=1)
    a = np.concatenate([first.a, second.a])
    down, up = _best(b.astype(np.float64), a.astype(np.float64), second.rank)
    return Pair(up, down / np.float32(second.scale), second.scale)


def _best(b: NDArray[np.float64], a: NDArray[np.float64], rank: int) -> tuple[Floats, Floats]:
    """(b [N, rank], a [rank, K]) whose product is nearest to b [N, r] . a [r, K], in the Frobenius norm."""
    left, of_b = np.linalg.qr(b)
    right, of_a = np.linalg.qr(a.T)
    u, s, v = np.linalg.svd(of_b @ of_a.T)
    root = np.sqrt(s[:rank])
    found_b = (left @ u[:, :rank]) * root
    found_a = root[:, None] * (v[:rank] @ right.T)
    return found_b.astype(np.float32), found_a.astype(np.float32)


def size_of(pairs: Lora) -> dict[str, float]:
    """||scale * B A|| of each projection, Frobenius, without a matrix [N, K]."""
    return {name: abs(pair.scale) * float(np.sqrt(max(0.0, np.sum((pair.b.T @ pair.b) * (pair.a @ pair.a.T)))))
            for name, pair in pairs.items()}
