"""Whether there are memory and disk for all steps, asked before they begin: the kernel would end the process without a
word, and a full disk would after minutes.
"""

from __future__ import annotations

from pathlib import Path

from ..disk import require_room
from ..errors import EdgetuneError, size_text
from ..machine.device import read_device
from .options import CompressConfig
from .source.floats import Floats

FLOAT = 4  # bytes of a weight
# Bytes of a weight besides the model itself: a copy in PyTorch; and to distill, the student with its gradient and
# AdamW's two moments, the teacher, and what both were made from.
COPIED = FLOAT
DISTILLED = 4 * FLOAT + 2 * FLOAT


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
