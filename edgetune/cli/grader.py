"""The grader that a command names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation.graders.base import Grader
    from ..evaluation.graders.reward import RewardFunction


def open_grader(named: str, unsafe_python: bool) -> Grader | RewardFunction:
    """Opens the grader of a file, or of module:function. Raises UsageError."""
    from ..evaluation.graders.base import load_grader
    from ..evaluation.graders.reward import NAMED, load_reward
    if not Path(named).exists() and NAMED.fullmatch(named):
        return load_reward(named)
    return load_grader(Path(named), allow_unsafe_python=unsafe_python)
