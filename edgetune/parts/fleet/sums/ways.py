"""The ways of a fleet to divide the work: which half of the adapter a round trains, and so how updates are summed.

With one half frozen at the fleet's value the sum of the products is the product of the sum, so nothing is lost:
frozen-a is FFA-LoRA (Sun et al. 2024, arXiv:2403.12313), rolora takes turns (Chen et al. 2025, arXiv:2502.01755). svd
trains both, sums the products and keeps the best of the rank, as FlexLoRA (Bai et al. 2024, arXiv:2402.11505).
"""

from __future__ import annotations

A = "a"
B = "b"
SVD = "svd"
FROZEN_A = "frozen-a"
ROLORA = "rolora"
WAYS = {SVD: (A + B,), FROZEN_A: (B,), ROLORA: (B, A)}
"""The halves that are trained in round 1, 2 and so on, from the first again after the last."""

FAMILIES = {A: "lora-fb", B: "lora-fa", A + B: "lora"}
"""The adapter family that trains them."""


def half_of(way: str, number: int) -> str:
    """Returns the halves of the pairs that round 1, 2, ... trains."""
    turns = WAYS[way]
    return turns[(number - 1) % len(turns)]
