"""Whether there are memory and disk for all steps, asked before they begin: the kernel would end the process without a
word, and a full disk would after minutes. And what a model will need on another device, by the planner of training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..backends.cpu import Cpu
from ..disk import require_room
from ..errors import EdgetuneError, UsageError, size_text
from ..formats.gguf import Gguf
from ..formats.shape import read_shape
from ..machine.device import Profile, board_named, read_device
from ..models.stream import WeightBytes, sizes
from ..models.structure import DecoderStructure
from ..training import plan
from ..training.config import DEFAULT_MEMORY, TrainConfig
from ..training.cost import profile_speed, tokens_per_s
from .options import CompressConfig
from .source.floats import Floats

FLOAT = 4  # bytes of a weight
# Bytes of a weight besides the model itself: a copy in PyTorch; and to distill, the student with its gradient and
# AdamW's two moments, the teacher, and what both were made from.
COPIED = FLOAT
DISTILLED = 4 * FLOAT + 2 * FLOAT
RESERVE = 1 / 16  # of the budget stays free when a file is made to fit: the process may be larger there, rows longer
STEP = 1 << 16  # bytes to which the largest file is found


def require_memory(nbytes: int, what: str) -> None:
    """EdgetuneError where fewer bytes are available."""
    if nbytes > (available := read_device().memory_available):
        raise EdgetuneError(f"{what} needs {size_text(nbytes)} of memory, {size_text(available)} are available",
                            "close other programs, or use a machine with more")


def for_steps(config: CompressConfig, weights: int) -> None:
    """The same for all that `config` asks of a model that is in memory already."""
    if config.distill:
        require_memory(DISTILLED * weights, f"distilling a model of {weights / 1e6:,.0f} million weights")
    elif config.calibrate or config.format == "onnx":
        require_memory(COPIED * weights, f"evaluating a model of {weights / 1e6:,.0f} million weights")


def require_disk(config: CompressConfig, model: Floats, is_gguf: bool, work: Path) -> None:
    """DiskFullError where `work` has no room for what is not there yet. is_gguf: whether the source is one."""
    there = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    require_room(work, max(disk_needed(config, model, is_gguf) - there, 0))


def disk_needed(config: CompressConfig, model: Floats, is_gguf: bool) -> int:
    """About the bytes that all files of a run take, the bundle among them."""
    halves = 2 * model.weights
    needed = 0 if is_gguf else halves
    needed += halves * bool(config.vocab)
    needed += halves * bool(config.calibrate or config.measure)  # the last step, to be measured
    needed += FLOAT * model.weights * (bool(config.drop_blocks) + (config.width < 1))
    if config.format == "onnx":
        return needed + 2 * (FLOAT + 1) * model.weights  # in float32 and int8, in the work folder and in the bundle
    if config.target_size or (config.device and not config.type):
        shape = model.shape
        widths = (shape.d_model, shape.d_model, shape.n_head * shape.d_head, shape.d_ff)  # of a block's inputs
        moments = FLOAT * shape.n_layer * sum(width**2 for width in widths)
        return needed + moments + 2 * (config.target_bytes() or model.weights)
    return needed + halves + 2 * (halves if config.type in ("F16", "BF16") else model.weights * 9 // 8)


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
        weights = WeightBytes((0,) * shape.n_layer, nbytes, 0, 0)  # resident ones count the same wherever they are
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


def _plan(shape: DecoderStructure, weights: WeightBytes, board: Profile, config: TrainConfig) -> plan.Plan:
    limits = plan.MemoryLimits(plan.PROCESS, budget=config.memory_bytes(board.available),
                               asked=f"{DEFAULT_MEMORY} of what is available on {board.name}")
    return plan.make(shape, config, ops=Cpu(board.cores or 1), sizes=weights, limits=limits)
