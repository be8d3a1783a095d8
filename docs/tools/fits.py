"""The table of boards in choose-a-model.md: what the planner says of known models on boards, without their weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetune.backends.cpu import Cpu
from edgetune.backends.native import FORMATS
from edgetune.errors import UsageError
from edgetune.formats import kinds
from edgetune.formats.families import FAMILIES
from edgetune.formats.recurrent import RecurrentShape
from edgetune.formats.shape import Rope, Shape
from edgetune.machine.device import Profile, board_named
from edgetune.models.stream import WeightBytes
from edgetune.models.structure import DecoderStructure
from edgetune.training import plan
from edgetune.training.config import TrainConfig
from edgetune.training.cost import profile_speed, tokens_per_s
from edgetune.training.length import batch_of, total_steps

ROWS = 500
TOKENS = 60  # of a row
BOARDS = ("Raspberry Pi Zero 2 W", "Raspberry Pi 4 Model B", "Raspberry Pi 5", "NVIDIA Jetson Orin Nano")


@dataclass(frozen=True)
class Published:
    """Sizes as in the model's config.json. format: of its matrices; embedding: of its table. head: the head is another
    matrix. attention: the blocks that have it, if others have another mixer. rotated: values of a head. others: further
    fields of a Shape.
    """

    name: str
    architecture: str
    layers: int
    width: int
    mlp: int
    heads: int
    kv: int
    head_width: int
    vocabulary: int
    format: str
    embedding: str
    head: bool = False
    attention: tuple[int, ...] = ()
    rotated: int = 0
    others: Mapping[str, Any] = field(default_factory=dict)

    def structure(self) -> DecoderStructure:
        family = FAMILIES[self.architecture]
        blocks = range(self.layers)
        mixers = tuple(family.elsewhere if self.attention and i not in self.attention else family.mixer for i in blocks)
        return DecoderStructure(Shape(
            self.architecture, self.layers, self.width, self.mlp, self.heads, self.kv, self.head_width,
            self.vocabulary, self.rotated or self.head_width, 8192, 1e-6, family.neox, family.act, 1.0, 1.0,
            qk_norm=family.qk_norm, pre_norms=family.pre_norms, post_norms=family.post_norms,
            ropes=(Rope(), Rope()), conv=3 if "short convolution" in mixers else 0,
            feeds=(family.feed,) * self.layers, windows=(0,) * self.layers, mixers=mixers, **self.others))

    def sizes(self) -> WeightBytes:
        shape = self.structure().shape
        row = _bytes(self.embedding, 1, self.width)
        table = row * self.vocabulary
        return WeightBytes(tuple(self._block(shape, i) for i in range(self.layers)), table, self.head * table, row)

    def _block(self, shape: Shape, layer: int) -> int:
        """Bytes of a block."""
        sizes = [*shape.linear_shapes(layer).values(), *shape.stack_shapes(layer).values()]
        of_kinds = (kinds.frozen(kind, shape).values() for kind in (shape.mixer(layer), shape.feed(layer)))
        floats = [size for of_kind in of_kinds for size in of_kind]
        return (sum(_bytes(self.format, math.prod(size[:-1]), size[-1]) for size in sizes)
                + sum(4 * math.prod(size) for size in floats))


LFM2 = (2, 5, 8, 10, 12, 14)  # blocks with attention
GRANITE_H = {"recurrent": RecurrentShape(4, 3072, 128, 48, 1)}


def _bytes(name: str, n: int, k: int) -> int:
    """Of a matrix; k is rounded up to whole blocks."""
    known = FORMATS[name]
    return n * -(-k // known.block) * known.size


MODELS = (
    Published("smollm2", "llama", 30, 576, 1536, 9, 3, 64, 49152, "Q4_1", "Q8_0"),
    Published("gemma3-270m", "gemma3", 18, 640, 2048, 4, 1, 256, 262144, "Q8_0", "Q8_0"),
    Published("ernie4.5-0.3b", "ernie4_5", 18, 1024, 3072, 16, 2, 128, 103424, "Q4_K", "Q6_K"),
    Published("lfm2-350m", "lfm2", 16, 1024, 4608, 16, 8, 64, 65536, "Q4_K", "Q6_K", attention=LFM2),
    Published("granite4-350m", "granite", 28, 1024, 2048, 16, 4, 64, 100352, "Q8_0", "Q8_0"),
    Published("granite4-h-350m", "granitehybrid", 32, 768, 2048, 12, 4, 64, 100352, "Q8_0", "Q8_0",
              attention=(10, 13, 17, 27), others={"recurrent": RecurrentShape(4, 1536, 128, 48, 1)}),
    Published("smollm2-360m", "llama", 32, 960, 2560, 15, 5, 64, 49152, "Q8_0", "Q8_0"),
    Published("qwen2.5-0.5b", "qwen2", 24, 896, 4864, 14, 2, 64, 151936, "Q5_0", "Q8_0"),
    Published("hunyuan-0.5b", "hunyuan-dense", 24, 1024, 3584, 16, 8, 128, 120818, "Q4_K", "Q6_K"),
    Published("qwen3-0.6b", "qwen3", 28, 1024, 3072, 16, 8, 128, 151936, "Q8_0", "Q8_0"),
    Published("qwen3.5-0.8b", "qwen35", 24, 1024, 3584, 8, 2, 256, 248320, "Q4_K", "Q6_K", rotated=64,
              attention=tuple(range(3, 24, 4)), others={"recurrent": RecurrentShape(4, 2048, 128, 16, 16)}),
    Published("gemma3-1b", "gemma3", 26, 1152, 6912, 4, 1, 256, 262144, "Q5_0", "Q8_0"),
    Published("lfm2.5-1.2b", "lfm2", 16, 2048, 8192, 32, 8, 64, 65536, "Q4_K", "Q6_K", attention=LFM2),
    Published("llama3.2-1b", "llama", 16, 2048, 8192, 32, 8, 64, 128256, "Q4_K", "Q6_K"),
    Published("exaone4-1.2b", "exaone4", 30, 2048, 4096, 32, 8, 64, 102400, "Q4_K", "Q6_K"),
    Published("olmo2-1b", "olmo2", 16, 2048, 8192, 16, 16, 128, 100352, "Q4_K", "Q6_K", head=True),
    Published("qwen2.5-1.5b", "qwen2", 28, 1536, 8960, 12, 2, 128, 151936, "Q4_K", "Q6_K"),
    Published("granite4-1b", "granite", 40, 2048, 4096, 16, 4, 128, 100352, "Q4_K", "Q6_K"),
    Published("granite4-h-1b", "granitehybrid", 40, 1536, 4096, 12, 4, 128, 100352, "Q4_K", "Q6_K",
              attention=(5, 15, 25, 35), others=GRANITE_H),
    Published("smollm2-1.7b", "llama", 24, 2048, 8192, 32, 32, 64, 49152, "Q4_K", "Q6_K"),
)


def table() -> Iterator[str]:
    boards = [board_named(name) for name in BOARDS]
    heads = [f"{board.name.removeprefix('NVIDIA ')}, {board.memory_mib[0] / 1024:g} GB" for board in boards]
    yield f"| model | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 1) + "|"
    for model in MODELS:
        yield f"| `{model.name}` | {' | '.join(cell(model, board) for board in boards)} |"


def cell(model: Published, board: Profile) -> str:
    """Peak memory in MiB, and the time of a run; "-" where it does not fit. *: weights are read in every step."""
    config = TrainConfig()
    limits = plan.MemoryLimits(plan.PROCESS, budget=config.memory_bytes(board.available))
    structure = model.structure()
    try:
        found = plan.make(structure, config, ops=Cpu(board.cores), sizes=model.sizes(), limits=limits)
    except UsageError:
        return "-"
    speed = profile_speed(board, found.run, found.run.max_tokens)
    assert speed is not None
    rate = tokens_per_s(structure, found.run, speed, found.read_bytes)
    tokens = total_steps(config, ROWS) * batch_of(config, ROWS) * TOKENS
    return f"{-(-found.peak_bytes // 2**20)}, {duration(tokens / rate)}{'*' if found.tradeoffs.streamed else ''}"


def duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.0f} h"


if __name__ == "__main__":
    print("\n".join(table()))
