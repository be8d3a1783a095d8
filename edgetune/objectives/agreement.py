"""Agreement: of the answers to a bare prompt, what most of them say is the label, and is imitated by how sure it is
(Huang et al. 2022, arXiv 2210.11610).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..options import option
from .base import register
from .rest import Rest


@register
@dataclass(frozen=True)
class Agreement(Rest):
    """ReST whose reward is the share of the answers to a prompt that agree with an answer: nobody knows a right one.

    L = -(1/N) sum_t r log p_t over the N tokens of the answers that are kept, r the share of the answers that say the
    same. What most answers say may be wrong, and is learned then.
    """

    name: ClassVar[str] = "agreement"
    grader: str = option('{"type": "agreement", "threshold": 0.01}', "What rewards an answer: a file with a grader as "
                         "JSON, or the JSON itself; where agreement is a part of it, a multi grader.")
    num_generations: int = option(8, "Answers to each prompt.", low=2, high=1024)
    min_reward: float = option(0.75, "The least share of answers that agree with one that is kept.")
    keep: int = option(1, "Different answers to a prompt that are kept at most, the best ones.", low=1)
    weigh: bool = option(True, "Weigh an answer that is kept by its reward.")
