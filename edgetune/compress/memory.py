"""Whether there is memory for a step, asked before it begins: the kernel would end the process without a word."""

from __future__ import annotations

from ..errors import EdgetuneError
from ..machine.device import read_device
from .options import CompressConfig

FLOAT = 4  # bytes of a weight
# Bytes of a weight besides the model itself: a copy in PyTorch; and to distill, the student with its gradient and
# AdamW's two moments, the teacher, and what both were made from.
COPIED = FLOAT
DISTILLED = 4 * FLOAT + 2 * FLOAT


def require_memory(nbytes: int, what: str) -> None:
    """EdgetuneError where fewer bytes are available."""
    if nbytes > (available := read_device().memory_available):
        raise EdgetuneError(f"{what} needs {nbytes >> 20} MiB of memory, {available >> 20} are available",
                            "close other programs, or use a machine with more")


def for_steps(config: CompressConfig, weights: int) -> None:
    """The same for all that `config` asks of a model that is in memory already."""
    if config.distill:
        require_memory(DISTILLED * weights, f"distilling a model of {weights / 1e6:,.0f} million weights")
    elif config.calibrate or config.format == "onnx":
        require_memory(COPIED * weights, f"evaluating a model of {weights / 1e6:,.0f} million weights")
