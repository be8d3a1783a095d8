"""The daemon's options of the tutor, and of the prompts that it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ...manifest import PartOptions
from ...options import option

if TYPE_CHECKING:
    from ...daemon.options import DaemonConfig


@dataclass(frozen=True)
class KeptPromptOptions(PartOptions):
    """The options of a daemon that keeps prompts and asks them again."""

    keep_prompts: int = option(0, "Prompts of people kept at most for --learn tutor, without answers; the oldest leave "
                               "first; 0: none, and those that were kept leave.", low=0, high=100_000,
                               group="What it keeps")
    tutor_prompts: int = option(64, "Kept prompts, not asked yet, that start the tutor's rounds.", low=1,
                                group="How it learns")
    tutor_options: str = option("", "Options of the tutor, such as rounds=5,per_round=32 [edgetune lab tutor's, but 3 "
                                "rounds and the limits on the canary].", group="How it learns")

    def check_own(self) -> None:
        """Raises UsageError for a tutor that cannot begin."""
        config = cast("DaemonConfig", self)
        if self.tutor_options or config.learn.startswith("tutor"):
            from .task import tutor_task
            tutor_task(config)
