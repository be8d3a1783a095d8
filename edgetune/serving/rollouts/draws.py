"""Draws of the next token of an answer: the keys of their random numbers, and the tokens that are allowed.

Letters: n rows, V vocabulary, M candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ...llamacpp.sampling import Sampling

Floats = NDArray[np.float32]
Top = Callable[[Floats], tuple[Floats, Floats]]
"""limit [n] -> the highest logits below it [n, M], -inf where there are fewer, and log-sum-exp of all logits [n]."""

NUCLEUS = 256  # candidates of top_p if top_k does not limit them
COLDEST = 1e-6  # a temperature below is 0
_NATIVE = ("temperature", "top_k", "top_p", "min_p", "seed")


def check_sampling(sampling: Sampling) -> Sampling:
    """Returns sampling; raises UsageError for a value out of its range, and for grammars and penalties of llama.cpp."""
    for name, value in vars(sampling.check()).items():
        if name not in _NATIVE and value != getattr(Sampling(), name) and name != "repeat_last_n":
            raise UsageError(f"{name} is {value!r}, edgetune's own engine draws without it",
                             "leave it out, or answer through llama.cpp")
    return sampling


def candidates_of(sampling: Sampling, n_vocab: int) -> int:
    """M, the number of highest logits that must be known before a draw; 0: none."""
    if sampling.temperature < COLDEST:
        return 0
    if 0 < sampling.top_k < n_vocab:
        return sampling.top_k
    if sampling.top_p < 1:
        return min(NUCLEUS, n_vocab)
    return 1 if sampling.min_p > 0 else 0


def limits_of(sampling: Sampling, top: Top, n: int) -> Floats:
    """The least logit that a row's token may have, [n]: by top_k, then top_p and min_p of the rest, as llama.cpp.

    Tokens as likely as the last one that is allowed are allowed too.
    """
    found, lse = top(np.full(n, np.inf, np.float32))
    values = -np.sort(-found, axis=1)
    by_top_k = sampling.top_k == values.shape[1]
    least = np.full(n, -np.inf)
    if sampling.min_p > 0:
        least = values[:, 0] + math.log(sampling.min_p)
    if by_top_k:
        peak = values[:, 0].astype(np.float64)
        lse = peak + np.log(np.exp(values - peak[:, None]).sum(1))
        least = np.maximum(least, values[:, -1])
    if sampling.top_p >= 1:
        return np.asarray(least, np.float32)
    last = np.full(n, -np.inf)
    mass = np.zeros(n)
    undecided = np.ones(n, np.bool_)
    while True:
        sums = mass[:, None] + np.cumsum(np.exp(values - lse[:, None], dtype=np.float64), axis=1)
        reached = undecided & (sums[:, -1] >= sampling.top_p)
        last[reached] = values[reached, (sums[reached] >= sampling.top_p).argmax(1)]
        mass = sums[:, -1]
        lowest = values[:, -1]
        undecided &= ~reached & (lowest > least)  # below `least` nothing is allowed, below -inf nothing is left
        if by_top_k or not undecided.any():
            return np.asarray(np.maximum(last, least), np.float32)
        found, _ = top(np.where(undecided, lowest, -np.inf).astype(np.float32))
        values = -np.sort(-found, axis=1)


def keys_of(seed: int, prompts: Sequence[int], samples: Sequence[int], positions: Sequence[int]) -> NDArray[np.int32]:
    """The key of each row's random number, [n, 2], for `head_sample`."""
    key = np.full(len(prompts), seed, np.uint64)
    for part in (prompts, samples, positions):
        key = _mix(key) ^ np.asarray(part, np.uint64)
    return _mix(key).astype("<u8").view(np.int32).reshape(-1, 2)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea & Flood 2014)."""
    mixed: NDArray[np.uint64] = x + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
