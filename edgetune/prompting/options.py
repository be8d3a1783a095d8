"""Options of the search for a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from ..formats.named import CONVERTED
from ..options import check_options, option


@dataclass(frozen=True)
class PromptOptions:
    """Options of a search. Immutable."""

    system: str = option("", "System message of yours: it is tried too, and the best prompt is compared with it.",
                         common=True, group="What is tried")
    nearest: int = option(8, "Examples at most that are near to the question; 0: none by nearness.", low=0, high=64,
                          common=True)
    encoder: str = option(CONVERTED, "Model for vectors, which says what is near: a GGUF or a name.", common=True)
    examples: int = option(8, "Examples at most that are the same for all questions; 0: none.", low=0, high=64,
                           common=True)
    sets: int = option(3, "Random sets of such examples.", low=1, high=64)
    proposals: int = option(8, "Instructions that the model proposes; 0: none.", low=0, high=64, common=True)
    longest: int = option(1024, "Tokens of a prompt with its question at most.", low=64, high=32768, common=True)
    select: int = option(64, "Rows at most by which prompts are chosen.", low=4, high=4096, common=True,
                         group="How it is measured")
    decide: int = option(100, "Rows at most that decide whether the chosen one is accepted.", low=4, high=4096,
                         common=True)
    memory: str = option("", "Memory of this process at most, such as 500M or 25% [75% of what is available].",
                         common=True, group="The search")
    seed: int = option(0, "Seed of everything random.", low=0, high=2**31 - 1, common=True)
    threads: int = option(0, "Threads; 0: one a core that this process may use.", low=0, high=1024, common=True)
    backend: str = option("auto", "What computes: cpu, cuda (an NVIDIA GPU), or auto: the GPU where one can be used.",
                          choices=("auto", "cpu", "cuda"))

    def check(self) -> PromptOptions:
        """Returns self; raises UsageError for the first option out of its range."""
        check_options(self)
        return self
