"""(model shape, options) -> the table of every buffer that training holds. The plan is the allocation.

Pure: no I/O. Training carves its arena from `Plan.buffers` and allocates nothing else of size.
"""

from __future__ import annotations

from dataclasses import dataclass

from .arena import Buffer, arena_bytes
from .config import TrainConfig
from .model import buffers
from .projection import Run, lora_size, target_names
from .shape import Shape


@dataclass(frozen=True)
class Plan:
    """Bytes everywhere. peak is what the whole process should reach: interpreter, mapped weights, arena."""

    run: Run
    buffers: tuple[Buffer, ...]
    weight_bytes: int
    process_bytes: int

    @property
    def arena_bytes(self) -> int:
        return arena_bytes(self.buffers)

    @property
    def peak_bytes(self) -> int:
        return self.process_bytes + self.weight_bytes + self.arena_bytes

    def to_json(self) -> dict[str, object]:
        rows = [{"name": b.name, "shape": list(b.shape), "dtype": b.dtype, "bytes": b.nbytes, "lifetime": b.lifetime}
                for b in self.buffers]
        return {"buffers": rows, "arena_bytes": self.arena_bytes, "weight_bytes": self.weight_bytes,
                "process_bytes": self.process_bytes, "peak_bytes": self.peak_bytes,
                "max_tokens": self.run.max_tokens}


def make(shape: Shape, config: TrainConfig, *, threads: int, weight_bytes: int, process_bytes: int,
         longest: int | None = None) -> Plan:
    """longest: tokens of the longest row, config.max_length when the data is not known yet.

    Raises UsageError for options that the model cannot fulfil (blocks).
    """
    longest = min(longest or config.max_length, config.max_length)
    unit = config.max_length if config.packing else longest
    run = Run(max_tokens=max(longest, min(config.micro_batch, config.batch_size * unit)), max_length=longest,
              rank=config.rank, targets=target_names(config.target_names()),
              blocks=config.block_range(shape.n_layer), dropout=config.dropout,
              keep_all=config.recompute == "none", threads=threads,
              precision=config.precision)
    size = lora_size(shape, run)
    state = [Buffer("adam_m", (size,), "run"), Buffer("adam_v", (size,), "run"), Buffer("best", (size,), "run")]
    return Plan(run, (*buffers(shape, run), *state), weight_bytes, process_bytes)
