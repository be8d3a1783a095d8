"""What a model will need on another device, by the planner that trains there."""

from __future__ import annotations

from typing import Any

from ..backends.cpu import Cpu
from ..errors import UsageError, size_text
from ..formats.gguf import Gguf
from ..formats.shape import read_shape
from ..machine.device import Profile, board_named
from ..models.stream import Sizes, sizes
from ..models.structure import DecoderStructure
from ..training import plan
from ..training.config import DEFAULT_MEMORY, TrainConfig
from ..training.cost import profile_speed, tokens_per_s
from .source.floats import Floats

RESERVE = 1 / 16  # of the budget stays free when a file is made to fit: the process may be larger there, rows longer
STEP = 1 << 16  # bytes to which the largest file is found


def on_device(gguf: Gguf, name: str) -> dict[str, Any]:
    """What training this file with the defaults takes on the device of that name, and how fast it should be: bytes,
    tokens a second (None: not known), and what is traded for memory, a sentence each.

    Raises UsageError for an unknown device, and where it cannot train the model.
    """
    board = board_named(name)
    shape = DecoderStructure(read_shape(gguf))
    made = _plan(shape, sizes(gguf.tensors.values(), shape.n_layer), board, TrainConfig())
    speed = profile_speed(board, made.run, made.run.max_tokens)
    rate = tokens_per_s(shape, made.run, speed, made.read_bytes) if speed else None
    return {"name": board.name, "memory_bytes": min(board.memory_mib) << 20, "budget_bytes": made.limits.budget,
            "predicted_peak_bytes": made.peak_bytes, "predicted_tokens_per_second": rate,
            "file_bytes": int(gguf.data.size), "traded": list(made.traded)}


def largest_file(model: Floats, name: str) -> int:
    """Bytes of the largest file of this model that trains on the device with all weights in memory, a reserve kept.

    The whole file counts, with its vocabulary. UsageError for an unknown device, and where none is small enough.
    """
    board = board_named(name)
    shape = DecoderStructure(model.shape)
    budget = TrainConfig().memory_bytes(board.available)

    def trains(nbytes: int) -> bool:
        weights = Sizes((0,) * shape.n_layer, nbytes, 0, 0)  # resident ones count the same wherever they are
        try:
            _plan(shape, weights, board, TrainConfig(weights="resident"))
        except UsageError:
            return False
        return True

    # in steps
    low = 0
    high = budget // STEP + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if trains(middle * STEP) else (low, middle)
    if (most := low * STEP - int(RESERVE * budget)) <= 0:
        raise UsageError(f"{board.name} has {size_text(budget)} for training, which this model needs besides its "
                         "weights", "drop blocks, make it narrower or name a larger device")
    return most


def _plan(shape: DecoderStructure, weights: Sizes, board: Profile, config: TrainConfig) -> plan.Plan:
    limits = plan.MemoryLimits(plan.PROCESS, budget=config.memory_bytes(board.available),
                               asked=f"{DEFAULT_MEMORY} of what is available on {board.name}")
    return plan.make(shape, config, ops=Cpu(board.cores or 1), sizes=weights, limits=limits)
