"""Rewards and scores, as rows, graders and functions give them."""

from __future__ import annotations

from typing import Any

MAX_REWARD = 1e9  # its square times the tokens of a batch is far below the end of float32
EXPECTED_REWARD = f"write a finite number from {-MAX_REWARD:,.0f} to {MAX_REWARD:,.0f}"


def reward_of(value: Any) -> float | None:
    """A number, also numpy's or torch's, as a float; None for anything else, and beyond MAX_REWARD."""
    if isinstance(value, str | bytes):
        return None
    try:
        number = float(value)
    except Exception:  # of a foreign type, whose conversion may do what it likes
        return None
    return number if abs(number) <= MAX_REWARD else None
