"""The pairs of a mixture's experts in files: those of a stack are one tensor each, A [E, R, K] and B [E, N, R].

llama.cpp multiplies by them with mul_mat_id. It does not compare E with the model's, so `check_fit` of store.py does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedError
from ..formats.gguf.write import Deferred, Weights
from .lora import Lora, Pair, expert_name, stack_of


def stacked(tensors: Mapping[str, Weights]) -> dict[str, Weights]:
    """The tensors of a file, with those of experts as one, which is put together when it is written. Raises
    UnsupportedError where the ranks of a stack differ.
    """
    found: dict[str, Weights] = {}
    stacks: dict[str, dict[int, NDArray[Any]]] = {}
    for name, array in tensors.items():
        stem, _, half = name.rpartition(".weight.")
        stack, expert = stack_of(stem)
        if expert < 0 or not isinstance(array, np.ndarray):
            found[name] = array
        else:
            stacks.setdefault(f"{stack}.weight.{half}", {})[expert] = array
    for name, experts in stacks.items():
        arrays = [experts[i] for i in sorted(experts)]
        if shapes := {array.shape for array in arrays} - {arrays[0].shape}:
            raise UnsupportedError(f"{name} would have experts of shapes {list(arrays[0].shape)} and "
                                   f"{list(shapes.pop())}", "a file has one rank for all: train them with one")
        format = "F16" if arrays[0].dtype == np.float16 else "F32"
        found[name] = Deferred((len(arrays), *arrays[0].shape), format, partial(np.stack, arrays))
    return found


def pairs_of(name: str, a: NDArray[np.float32], b: NDArray[np.float32], alpha: float) -> Lora:
    """The pair of a projection's two tensors, or one for each expert. alpha: of the file; 0: B has the scale."""
    scale = alpha / a.shape[-2] if alpha else 1.0
    if a.ndim == 2:
        return {name: Pair(a, b, scale)}
    return {expert_name(name, i): Pair(a[i], b[i], scale) for i in range(len(a))}


def tensor_shapes(pairs: Lora) -> list[tuple[str, tuple[int, ...]]]:
    """(tensor, shape) of what each pair changes; of an expert that of a stack of as many as have pairs."""
    experts: dict[str, set[int]] = {}
    for stack, expert in map(stack_of, pairs):
        experts.setdefault(stack, set()).add(expert)
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for name, pair in pairs.items():
        stack, expert = stack_of(name)
        found = experts[stack]
        count = () if expert < 0 else (len(found) if found == {*range(len(found))} else max(found) + 1,)
        shapes.append((f"{stack}.weight", (*count, pair.b.shape[0], pair.a.shape[1])))
    return shapes
