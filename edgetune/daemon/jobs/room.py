"""The memory that a job's process may have, within the daemon's, and whether it keeps weights or streams them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

from ...errors import BudgetError, TooMuchError, UsageError, size_text
from ...formats.gguf import Gguf
from ...training.config import TrainConfig
from ...training.sizing import least_bytes

T = TypeVar("T")
MIB = 2**20
SMALL_JOB = TrainConfig(max_length=128, batch_size=1, weights="streamed")


def small_job_bytes(base: Gguf) -> int:
    """The memory of the process of a job of rows of 128 tokens, one at a time; 0 for a base that cannot be trained."""
    return least_bytes(base, SMALL_JOB)


@dataclass(frozen=True)
class Room:
    """Room in bytes. budget: of the daemon with all that it starts. resident: left for a process that keeps all weights
    in memory, where weights that the daemon has mapped count as its own. streamed: left for one that streams them.
    later: how much more is left when the daemon answers nobody. has_context: whether a smaller context leaves more.
    """

    budget: int
    resident: int
    streamed: int
    later: int = 0
    has_context: bool = True

    def wider(self, nbytes: int) -> Room:
        """Returns the room with so much more: memory of the process that the daemon has, too, where it counts; less
        where it is negative.
        """
        return replace(self, resident=self.resident + nbytes, streamed=self.streamed + nbytes)

    def fitting(self, config: TrainConfig, do: Callable[[TrainConfig, bool], T]) -> T:
        """Returns the result of `do` with weights as the options name them; where they leave that open, as they fit.
        It may shorten rows (True), if the options leave their length open, only when whole ones do not fit.

        Raises errors with the daemon's numbers where the memory that is left does not suffice: TooMuchError where it
        will when nobody is answered, else UsageError.
        """
        refused: list[tuple[int, int, int]] = []  # missing, needed, left
        of_request: BudgetError | None = None
        ways = ("resident", "streamed") if config.weights == "auto" else (config.weights,)
        for shortens, weights in product((False, True) if isinstance(config.max_length, str) else (False,), ways):
            left = max(getattr(self, weights), MIB)
            asked = min(config.memory_bytes(left), left) if config.memory else left
            try:
                return do(replace(config, weights=weights, memory=f"{max(asked // MIB, 1)}M"), shortens)
            except BudgetError as error:
                if error.needed <= left:
                    of_request = error  # which names less memory than there is
                refused.append((error.needed - getattr(self, weights), error.needed, max(getattr(self, weights), 0)))
        if of_request:
            raise of_request
        missing, needed, left = min(refused)
        what = (f"training needs {size_text(-(-needed // MIB) * MIB)}, and of the daemon's {size_text(self.budget)} "
                f"{size_text(left)} are left for it")
        if missing <= self.later:
            raise TooMuchError(f"{what} now, {size_text(left + self.later)} when nobody is answered: it starts by "
                               "itself", "")
        raise UsageError(what, f"start the daemon with --memory {-(-(self.budget + missing) // MIB)}M"
                         + (", or with a smaller --context" if self.has_context else ""))
