"""The slope of a loss, by finite differences, beside the gradient that backward found."""

import numpy as np

from edgetune.data.packing import Batch
from edgetune.models.decoder import Decoder


def slope_and_norm(decoder: Decoder, batch: Batch, step: float) -> tuple[float, float]:
    """(the slope of the loss along the gradient of all parameters, by two losses `step` to either side, the norm of the
    gradient), which are equal where the gradient is right. The parameters stay as they were.
    """
    values = decoder.arena.flat("lora")
    decoder.arena.flat("dlora").fill(0.0)
    decoder.forward(batch, keep=True)
    decoder.backward(batch, batch.supervised_weights)
    gradient = decoder.arena.flat("dlora").copy()
    norm = float(np.linalg.norm(gradient))
    start = values.copy()

    def loss(distance: float) -> float:
        values[:] = start + np.float32(distance) * gradient / norm
        return -float(decoder.score(batch).sum(dtype=np.float64))

    slope = (loss(step) - loss(-step)) / (2 * step)
    values[:] = start
    return slope, norm
