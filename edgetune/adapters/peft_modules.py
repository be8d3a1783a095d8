"""Projections that transformers holds as one module or parameter, and a GGUF each for itself, in PEFT's folders.

Experts of a block can be one parameter [E, N, K] (target_parameters). PEFT stores A of all experts as [E * R, K], each
expert's ranks together, and B as [N, R * E], each rank's experts together. Where one parameter holds gate and up, an
expert's update of it has the ranks of both: A one below the other, B in blocks. PEFT warns of patterns for parameters,
so all have the rank of the largest, with zeros in the others.
Source: PEFT 0.21, lora.ParamWrapper.get_delta_weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..formats.shape import Shape
from .lora import Lora, Pair, expert_name

Floats = NDArray[np.float32]
Parts = Sequence[tuple[int, list[Pair]]]
"""N of each stack in a parameter, and its pairs; none, where it is not adapted."""


@dataclass(frozen=True)
class Parameter:
    """An update of one parameter: a [E * R, K], b [N, R * E], as PEFT stores them."""

    a: Floats
    b: Floats
    rank: int
    scale: float = 1.0


def parameters_of(pairs: Lora, shape: Shape) -> dict[str, Parameter]:
    """The updates of a block's experts, by the path of their module; {} where each expert is a module."""
    found: dict[str, Parts] = {}
    for layer in range(shape.n_layer):
        stacks = shape.stack_shapes(layer)
        for module, names in shape.family.expert_parameters.items():
            parts = [(stacks[name][1], _experts(pairs, f"blk.{layer}.{name}", shape.n_expert))
                     for name in names if name in stacks]
            if any(experts for _, experts in parts):
                found[f"model.layers.{layer}.{module}"] = parts
    rank = max((sum(experts[0].rank for _, experts in parts if experts) for parts in found.values()), default=0)
    return {path: _parameter(parts, rank) for path, parts in found.items()}


def _experts(pairs: Lora, stack: str, count: int) -> list[Pair]:
    """The pairs of a stack; []: it is not adapted."""
    names = [expert_name(stack, i) for i in range(count)]
    return [pairs[name] for name in names] if names[0] in pairs else []


def _parameter(parts: Parts, rank: int) -> Parameter:
    """The update of a parameter, with its scale in B."""
    count = max(len(experts) for _, experts in parts)
    width = next(experts[0].a.shape[1] for _, experts in parts if experts)
    a = np.zeros((count, rank, width), np.float32)
    b = np.zeros((count, sum(n for n, _ in parts), rank), np.float32)
    row = 0
    first = 0
    for n, experts in parts:
        for i, pair in enumerate(experts):
            a[i, first:first + pair.rank] = pair.a
            b[i, row:row + n, first:first + pair.rank] = pair.b * np.float32(pair.scale)
        row += n
        first += experts[0].rank if experts else 0
    return Parameter(a.reshape(-1, width), b.transpose(1, 2, 0).reshape(row, -1), rank)


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
