"""Inputs for tests of ops."""

import numpy as np


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def forest(tokens: int, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """end, position [T] of `documents` documents, the first one token long; of a random forest if there are none."""
    dice = np.random.default_rng(tokens)
    begins = {0, *np.linspace(1, tokens, documents, dtype=int)[:-1].tolist()} if documents else {0}
    end = np.empty(tokens, np.int32)
    position = np.empty(tokens, np.int32)
    path: list[int] = []
    for t in range(tokens):
        depth = 0 if t in begins else len(path)
        if not documents and dice.random() < 0.1:
            depth = int(dice.integers(len(path) + 1))
        end[path[depth:]] = t
        path = [*path[:depth], t]
        position[t] = depth
    end[path] = tokens
    return end, position


def visible(end: np.ndarray, position: np.ndarray, window: int, both_ways: bool = False) -> np.ndarray:
    """[T, T]: what token t (row) may see."""
    t, j = np.indices((end.size, end.size))
    first = j - position[j] if both_ways else j
    return (first <= t) & (t < end[j]) & ((window == 0) | (np.abs(position[t] - position[j]) < window))
