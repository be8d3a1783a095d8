"""The low-rank update of a frozen projection (Hu et al. 2021, arXiv:2106.09685): W x + scale * B (A x).

R rank, K inputs and N outputs of the projection.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError


@dataclass
class Pair:
    """delta W = scale * b @ a. The arrays may be views of a training arena, which changes them in place."""

    a: NDArray[np.float32]  # [R, K]
    b: NDArray[np.float32]  # [N, R]
    scale: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


Lora = dict[str, Pair]
"""By GGUF tensor name without ".weight", "blk.0.attn_q". Each expert of a stack has a pair: "blk.0.ffn_up_exps.3"."""


def expert_name(stack: str, expert: int) -> str:
    """"ffn_up_exps", 3 -> "ffn_up_exps.3" """
    return f"{stack}.{expert}"


def stack_of(name: str) -> tuple[str, int]:
    """"blk.0.ffn_up_exps.3" -> ("blk.0.ffn_up_exps", 3); for what is no expert's, the name and -1."""
    found = re.fullmatch(r"(.+_exps)\.(\d{1,4})", name)
    return (found[1], int(found[2])) if found else (name, -1)


def scale_of(alpha: float, rank: int, rslora: bool = False) -> float:
    """alpha / R, or alpha / sqrt(R) (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def init_pairs(shapes: Mapping[str, tuple[int, ...]], rank: int, scale: float, seed: int) -> Lora:
    """A pair for each name -> (N, K): A uniform in +-1/sqrt(K) (as PEFT's kaiming_uniform, a = sqrt 5), B zero.

    A depends only on (seed, name), not on which other projections are trained.
    Raises UsageError for a rank below 1 or above the narrowest K.
    """
    check_rank(shapes, rank)
    return {name: Pair(_uniform(rank, k, seed, name), np.zeros((n, rank), np.float32), scale)
            for name, (n, k) in shapes.items()}


def check_rank(shapes: Mapping[str, tuple[int, ...]], rank: int) -> None:
    """Raises UsageError for a rank below 1 or above the narrowest K of name -> (N, K)."""
    width, narrow = min((k, name) for name, (_, k) in shapes.items())
    if not 1 <= rank <= width:
        raise UsageError(f"rank {rank} is not between 1 and {width}, the width of {narrow}", "8 or 16 is a usual rank")


def _uniform(rank: int, width: int, seed: int, name: str) -> NDArray[np.float32]:
    rng: Any = np.random.default_rng([seed, *name.encode()])
    bound = 1.0 / math.sqrt(width)
    return np.asarray(rng.uniform(-bound, bound, (rank, width)), np.float32)
