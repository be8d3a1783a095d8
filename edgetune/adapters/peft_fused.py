"""Projections that transformers holds as one module, one after the other, and a GGUF each for itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..formats.shape import Shape
from .lora import Lora, Pair


def fused_of(shape: Shape) -> Mapping[str, tuple[str, ...]]:
    """Modules of a block that hold several projections."""
    if shape.d_shared:
        return shape.family.shared_fused
    return {} if shape.n_expert else shape.family.fused


def join_fused(pairs: Lora, shape: Shape) -> Lora:
    """The pairs with one for each such module, "blk.0.shared_mlp.input_linear", whose rank is the sum of its parts'."""
    found = dict(pairs)
    for layer in range(shape.n_layer):
        for module, kinds in fused_of(shape).items():
            parts = [found.pop(f"blk.{layer}.{kind}", None) for kind in kinds]
            if any(parts):
                sizes = [shape.linear_shapes(layer)[kind] for kind in kinds]
                found[f"blk.{layer}.{module}"] = _joined(parts, sizes)
    return found


def _joined(parts: list[Pair | None], sizes: list[tuple[int, int]]) -> Pair:
    """One after the other: b has the update of each in its own rows and columns."""
    present = [part for part in parts if part is not None]
    scale = present[0].scale
    rank = sum(part.rank for part in present)
    b = np.zeros((sum(n for n, _ in sizes), rank), np.float32)
    row = column = 0
    for part, (n, _) in zip(parts, sizes, strict=True):
        if part is not None:
            b[row:row + n, column:column + part.rank] = part.b * np.float32(part.scale / scale)
            column += part.rank
        row += n
    return Pair(np.concatenate([part.a for part in present]), b, scale)


def split_fused(pairs: Lora, shape: Shape) -> Lora:
    """The inverse: each part has its rows of b, and the ranks that are not 0 in these. A module of other rows stays.
    """
    found = dict(pairs)
    for layer in range(shape.n_layer):
        for module, kinds in fused_of(shape).items():
            sizes = [shape.linear_shapes(layer)[kind][0] for kind in kinds]
            pair = found.get(f"blk.{layer}.{module}")
            if pair is None or len(pair.b) != sum(sizes):
                continue
            del found[f"blk.{layer}.{module}"]
            for kind, b in zip(kinds, np.split(pair.b, np.cumsum(sizes)[:-1]), strict=True):
                own = b.any(0) if b.any() else np.ones(pair.rank, np.bool_)
                found[f"blk.{layer}.{kind}"] = Pair(pair.a[own], np.ascontiguousarray(b[:, own]), pair.scale)
    return found
