"""What ops read of a batch, where they can."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..backends.base import Array, Backend

if TYPE_CHECKING:
    from ..data.packing import Batch


class Placed:
    """positions [T]; ends and positions of all that is seen; supervised [S], rows of the residual stream, and targets
    [S]; all int32.
    """

    def __init__(self, ops: Backend, batch: Batch) -> None:
        self.batch = batch
        self.positions: Array = ops.place(batch.positions)
        self.seen_ends: Array = ops.place(batch.seen_ends)
        self.seen_positions: Array = ops.place(batch.seen_positions)
        self.supervised: Array = ops.place(batch.supervised.astype(np.int32))
        self.targets: Array = ops.place(batch.targets)
