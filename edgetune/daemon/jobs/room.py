"""The memory that a job's process may have, within the daemon's, and whether it keeps weights or streams them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from ...errors import BudgetError, UsageError
from ...training.config import TrainConfig

T = TypeVar("T")
MIB = 2**20


@dataclass(frozen=True)
class Room:
    """Room in bytes. budget: of the daemon with all that it starts. resident: left for a process that keeps all weights
    in memory, where weights that the daemon has mapped count as its own. streamed: left for one that streams them.
    """

    budget: int
    resident: int
    streamed: int

    def fitting(self, config: TrainConfig, do: Callable[[TrainConfig], T]) -> T:
        """Returns the result of `do` with weights as the options name them; where they leave that open, as they fit.

        Raises UsageError with the daemon's numbers where the memory that is left does not suffice.
        """
        refused: list[tuple[int, int, int]] = []  # missing, needed, left
        of_request: BudgetError | None = None
        for weights in ("resident", "streamed") if config.weights == "auto" else (config.weights,):
            left = max(getattr(self, weights), MIB)
            asked = min(config.memory_bytes(left), left) if config.memory else left
            try:
                return do(replace(config, weights=weights, memory=f"{max(asked // MIB, 1)}M"))
            except BudgetError as error:
                if error.needed <= left:
                    of_request = error  # which names less memory than there is
                refused.append((error.needed - left, error.needed, left))
        if of_request:
            raise of_request
        missing, needed, left = min(refused)
        raise UsageError(f"training needs {-(-needed // MIB)} MiB, and of the daemon's {self.budget // MIB} MiB "
                         f"{left // MIB} are left for it",
                         f"start the daemon with --memory {-(-(self.budget + missing) // MIB)}M, or with a smaller "
                         "--context")
