"""The rows of each step and their micro-batches, as a function of rows, options and plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..data.packing import Batch, Example, order
from ..data.trees import Tree, micro_batches
from ..models.base import Passes
from . import length
from .config import TrainConfig

COUNTED = 64  # batches


@dataclass(frozen=True)
class Batches:
    """Batches of examples. units: indices of what a batch counts: rows, groups of rows, or with packing packs of them.
    anchors: learned together with them, one for each `rows_per_anchor` units.
    """

    config: TrainConfig
    examples: Sequence[Example] = ()
    anchors: Sequence[Example] = ()
    rows_per_anchor: int = 0
    units: Sequence[Sequence[int]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", length.units_of(self.examples, self.config))

    @property
    def steps_per_epoch(self) -> int:
        return length.steps_per_epoch(self.config, len(self.units))

    def of_step(self, step: int) -> list[Example]:
        """The examples of step 1, 2, ..."""
        epoch, slot = divmod(step - 1, self.steps_per_epoch)
        rows = order(len(self.units), epoch, self.config.seed, self.config.shuffle)
        size = length.batch_of(self.config, len(self.units))
        return [self.examples[i] for unit in rows[slot * size:(slot + 1) * size] for i in self.units[unit]]

    def anchors_of_step(self, step: int) -> list[Example]:
        """The anchors of a step, in an order by the seed; none is repeated before all were used."""
        if not self.anchors:
            return []
        size = length.batch_of(self.config, len(self.units))
        mixed = order(len(self.anchors), 0, self.config.seed, True)
        numbers = range((step - 1) * size // self.rows_per_anchor, step * size // self.rows_per_anchor)
        return [self.anchors[mixed[number % len(mixed)]] for number in numbers]

    def computed_share(self, max_tokens: int, prefix: int = 0) -> float:
        """The share of tokens that is computed, as common prefixes are shared; by the first COUNTED batches."""
        batches = [batch for step in range(1, min(COUNTED, self.steps_per_epoch) + 1)
                   for batch in cut(self.of_step(step), self.config, max_tokens, prefix)]
        return sum(batch.computed for batch in batches) / sum(batch.row_tokens for batch in batches)


class Micros:
    """The micro-batches of a network. max_tokens: in one; may be lowered, down to the plan's least_tokens. computing:
    whether the arena holds activations.
    """

    def __init__(self, decoder: Passes, config: TrainConfig, max_tokens: int, prefix: int) -> None:
        self.decoder = decoder
        self.config = config
        self.max_tokens = max_tokens
        self.prefix = prefix
        self.computing = False

    def cut(self, examples: Sequence[Example]) -> list[Batch | Tree]:
        return cut(examples, self.config, self.max_tokens, self.prefix)

    def one_by_one(self, micros: Iterable[Batch | Tree]) -> Iterator[Batch | Tree]:
        """Calls before_block before each one: a run may stop there, and also pause, because the arena holds nothing."""
        for micro in micros:
            self.decoder.before_block()
            self.computing = True
            yield micro
            self.computing = False


def cut(examples: Sequence[Example], config: TrainConfig, max_tokens: int, prefix: int = 0) -> list[Batch | Tree]:
    return micro_batches(examples, max_tokens, shares(config), prefix)


def shares(config: TrainConfig) -> bool:
    """Whether the common prefix of rows is computed once."""
    return config.share_prefixes == "auto"
