"""Several LoRAs of one base as one: their weighted sum, exact by stacking, or cut to a rank.

The sum of delta W = s B A is of rank R1 + R2 + ...; QR of the stacked factors and an SVD of the small core give the
nearest matrix of a smaller rank, without a dense matrix. N outputs, K inputs of a projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from .lora import Lora, Pair

Doubles = NDArray[np.float64]


def stacked(loras: Sequence[Lora], weights: Sequence[float]) -> Lora:
    """sum_i w_i s_i B_i A_i, exactly. Each LoRA has as many ranks as the largest, in every projection that one adapts:
    those of the first come first, and zeros stand for what is not there.
    """
    rank = max(pair.rank for lora in loras for pair in lora.values())
    shapes = {name: (pair.b.shape[0], pair.a.shape[1]) for lora in loras for name, pair in lora.items()}
    found = {}
    for name, (n, k) in shapes.items():
        a = np.zeros((len(loras), rank, k), np.float32)
        b = np.zeros((n, len(loras), rank), np.float32)
        for i, (lora, weight) in enumerate(zip(loras, weights, strict=True)):
            if pair := lora.get(name):
                a[i, :pair.rank] = pair.a
                b[:, i, :pair.rank] = pair.b * np.float32(weight * pair.scale)
        found[name] = Pair(a.reshape(-1, k), b.reshape(n, -1), 1.0)
    return found


def cut(lora: Lora, rank: int) -> Lora:
    """The nearest LoRA of a rank, by the Frobenius norm, in each projection."""
    return {name: _cut(pair, rank) for name, pair in lora.items()}


def _cut(pair: Pair, rank: int) -> Pair:
    left, core_b = np.linalg.qr(_double(pair.b))
    right, core_a = np.linalg.qr(_double(pair.a).T)
    u, singular, vt = np.linalg.svd(pair.scale * core_b @ core_a.T)
    kept = min(rank, len(singular))
    root = np.sqrt(singular[:kept])
    a = (right @ vt[:kept].T) * root
    b = (left @ u[:, :kept]) * root
    return Pair(np.ascontiguousarray(a.T, np.float32), b.astype(np.float32), 1.0)


def similarity(one: Lora, other: Lora) -> float:
    """The cosine of two updates, over all projections together; 0 where one changes nothing."""
    lengths = _product(one, one) * _product(other, other)
    return _product(one, other) / lengths**0.5 if lengths > 0 else 0.0


def most_similar(loras: Mapping[str, Lora]) -> tuple[str, str]:
    """The names of the two most similar of two or more."""
    return max(combinations(loras, 2), key=lambda pair: similarity(loras[pair[0]], loras[pair[1]]))


def _product(one: Lora, other: Lora) -> float:
    """tr(delta W^T . delta W'), by products of R x R alone."""
    return sum(one[name].scale * other[name].scale * float(
        np.sum((_double(one[name].b).T @ _double(other[name].b)) * (_double(one[name].a) @ _double(other[name].a).T)))
        for name in one if name in other)


def _double(array: NDArray[np.float32]) -> Doubles:
    return array.astype(np.float64)
