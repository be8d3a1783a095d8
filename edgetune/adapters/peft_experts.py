"""Experts in PEFT's folders where transformers holds those of a block as one parameter [E, N, K]: target_parameters.

PEFT stores A of all experts as [E * R, K], each expert's ranks together, and B as [N, R * E], each rank's experts
together. Where one parameter holds gate and up, an expert's update of it has the ranks of both: A one below the other,
B in blocks. PEFT warns of patterns for parameters, so all have the rank of the largest, with zeros in the others.
Source: PEFT 0.21, lora.ParamWrapper.get_delta_weight.
"""

from __future__ import annotations

from collections.abc import Sequence
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
