"""The table of boards in choose-a-model.md: what the planner says of known models on boards, without their weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgetune.backends.cpu import Cpu
from edgetune.backends.native import FORMATS
from edgetune.errors import UsageError
from edgetune.formats.families import FAMILIES
from edgetune.formats.shape import Rope, Shape
from edgetune.machine.device import Profile, board_named
from edgetune.models.stream import Sizes
from edgetune.models.structure import DecoderStructure
from edgetune.training import plan
from edgetune.training.config import TrainConfig
from edgetune.training.cost import profile_speed, tokens_per_s
from edgetune.training.length import batch_of, total_steps

ROWS = 500
TOKENS = 60  # of a row
BOARDS = ("Raspberry Pi Zero 2 W", "Raspberry Pi 3 Model B+", "Raspberry Pi 4 Model B", "Raspberry Pi 5",
          "NVIDIA Jetson Nano", "NVIDIA Jetson Orin Nano")


@dataclass(frozen=True)
class Published:
    """Sizes as in the model's config.json; head: another matrix than the embedding. format: of its matrices."""

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

    def structure(self) -> DecoderStructure:
        family = FAMILIES[self.architecture]
        return DecoderStructure(Shape(
            self.architecture, self.layers, self.width, self.mlp, self.heads, self.kv, self.head_width,
            self.vocabulary, self.head_width, 8192, 1e-6, family.neox, family.act, 1.0, 1.0,
            qk_norm=family.qk_norm, post_norms=family.post_norms,
            ropes=(Rope(), Rope()), windows=(0,) * self.layers))

    def sizes(self) -> Sizes:
        block = sum(_bytes(self.format, n, k) for n, k in self.structure().linear_shapes(0).values())
        row = _bytes(self.embedding, 1, self.width)
        return Sizes((block,) * self.layers, row * self.vocabulary, 0, row)


MODELS = (
    Published("smollm2", "llama", 30, 576, 1536, 9, 3, 64, 49152, "Q4_1", "Q8_0"),
    Published("gemma3-270m", "gemma3", 18, 640, 2048, 4, 1, 256, 262144, "Q8_0", "Q8_0"),
    Published("smollm2-360m", "llama", 32, 960, 2560, 15, 5, 64, 49152, "Q8_0", "Q8_0"),
    Published("qwen2.5-0.5b", "qwen2", 24, 896, 4864, 14, 2, 64, 151936, "Q5_0", "Q8_0"),
    Published("qwen3-0.6b", "qwen3", 28, 1024, 3072, 16, 8, 128, 151936, "Q8_0", "Q8_0"),
    Published("gemma3-1b", "gemma3", 26, 1152, 6912, 4, 1, 256, 262144, "Q5_0", "Q8_0"),
    Published("llama3.2-1b", "llama", 16, 2048, 8192, 32, 8, 64, 128256, "Q4_K", "Q6_K"),
    Published("qwen2.5-1.5b", "qwen2", 28, 1536, 8960, 12, 2, 128, 151936, "Q4_K", "Q6_K"),
    Published("smollm2-1.7b", "llama", 24, 2048, 8192, 32, 32, 64, 49152, "Q4_K", "Q6_K"),
)


def _bytes(name: str, n: int, k: int) -> int:
    """Of a matrix; k is rounded up to whole blocks."""
    known = FORMATS[name]
    return n * -(-k // known.block) * known.size


def table() -> Iterator[str]:
    boards = [board_named(name) for name in BOARDS]
    heads = [f"{board.name.removeprefix('NVIDIA ')}, {board.memory_mib[0] / 1024:g} GB" for board in boards]
    yield f"| model | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 1) + "|"
    for model in MODELS:
        yield f"| `{model.name}` | {' | '.join(cell(model, board) for board in boards)} |"


def cell(model: Published, board: Profile) -> str:
    """Peak memory and time of a run; "-" where it does not fit."""
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
    read = ", read" if found.tradeoffs.streamed else ""
    return f"{-(-found.peak_bytes // 2**20)} MiB, {duration(tokens / rate)}{read}"


def duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.0f} h"


if __name__ == "__main__":
    print("\n".join(table()))
