"""(network, options, budget) -> the table of every buffer that training holds. The plan is the allocation.

Pure: no I/O. Training carves its arena from `Plan.buffers` and allocates nothing else of size.

What is traded for memory changes speed, not what is learned (some sums are rounded otherwise, no more): which
activations are kept, how many tokens are computed at a time, which weights stay in memory. Of all that fits, the
quickest by the rule of `speed.work` is taken, so a bigger budget never makes a slower plan. The optimizer's state in 8
bits comes last, for it changes the adapter: such a plan counts as slower than it is by a factor. Rows are never padded
(micro-batches are flat), so there is nothing to sort into buckets: buffers are as large as the longest rows need.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from ..adapters.base import Family
from ..adapters.low_rank import lora_of
from ..backends.arena import Buffer, arena_bytes
from ..backends.base import Backend
from ..data.packing import Lengths
from ..errors import UsageError
from ..models.base import Structure
from ..models.linear import RunShape, target_names, trained_shapes
from ..models.stream import Sizes
from . import optim
from .config import TrainConfig
from .cost import cost_per_token

MIB = 1 << 20
PROCESS = 44 * MIB  # Python and its libraries before training, where it is not this process; measured 43
GROWTH = 6 * MIB  # what Python, threads and the writer of adapters take while training, beyond the table
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # rows in a micro-batch that are looked at
ROUNDED = 1.25  # moments in 8 bits are taken where a plan with floats is slower by this factor, or does not fit
UNLIMITED = 1 << 62


@dataclass(frozen=True)
class MemoryLimits:
    """What a plan has to fit into. process: bytes of this process before training (interpreter, libraries, data; no
    weights); before: the most that it has had so far; budget: what it may have; asked: the budget in a person's words.
    """

    process: int
    before: int = 0
    budget: int = UNLIMITED
    asked: str = ""


@dataclass(frozen=True)
class Tradeoffs:
    """What was traded: tokens in a micro-batch, blocks whose activations are kept, and whose weights are streamed;
    whether AdamW's moments lie in "float" or "8bit".
    """

    max_tokens: int
    kept: int
    streamed: int
    optimizer_state: str = "float"


@dataclass(frozen=True)
class Plan:
    """Bytes everywhere. peak is what the whole process should reach: interpreter, mapped weights, arena."""

    run: RunShape
    buffers: tuple[Buffer, ...]
    sizes: Sizes
    choice: Tradeoffs
    room: MemoryLimits
    longest_group: int  # tokens: fewer may not be computed at a time
    traded: tuple[str, ...] = ()  # a sentence each

    @property
    def arena_bytes(self) -> int:
        return arena_bytes(self.buffers)

    @property
    def weight_bytes(self) -> int:
        """In memory at most."""
        return self.sizes.in_memory(self.choice.streamed, self.run.max_tokens)

    @property
    def read_bytes(self) -> int:
        """From the file, for a micro-batch."""
        return self.sizes.read(self.choice.streamed, self.run.lowest)

    @property
    def peak_bytes(self) -> int:
        return max(self.room.before, self.room.process + GROWTH + self.weight_bytes + self.arena_bytes)

    def to_json(self) -> dict[str, object]:
        rows = [{"name": b.name, "shape": list(b.shape), "dtype": b.dtype, "bytes": b.nbytes, "lifetime": b.lifetime}
                for b in self.buffers]
        return {"buffers": rows, "arena_bytes": self.arena_bytes, "weight_bytes": self.weight_bytes,
                "process_bytes": self.room.process + GROWTH, "before_bytes": self.room.before,
                "peak_bytes": self.peak_bytes, "budget_bytes": self.room.budget, "budget": self.room.asked,
                "traded": list(self.traded), "read_bytes": self.read_bytes, **asdict(self.choice)}


def make(structure: Structure, config: TrainConfig, *, ops: Backend, sizes: Sizes, room: MemoryLimits,
         lengths: Lengths = (), like: Tradeoffs | None = None, family: Family | None = None) -> Plan:
    """The quickest plan that fits into `room`. lengths: tokens of each row, those of a group in a tuple; empty when the
    data is not known yet.

    like: an earlier plan's choice; all of it that decides how sums are rounded is taken over. Raises UsageError where
    nothing fits, and for options that the model cannot fulfil (blocks, rank). family: what is trained; None: LoRA.
    """
    planner = _Planner(structure, config, ops, sizes, room, lengths, like, family)
    run = planner.run(Tradeoffs(1, 1, 0))
    run.family.check_shapes(trained_shapes(structure, run))
    best = planner.best()
    if best is None:
        raise _refusal(planner)
    return replace(planner.plan(best), traded=tuple(planner.trades(best)))


@dataclass(frozen=True)
class _Planner:
    structure: Structure
    config: TrainConfig
    ops: Backend
    sizes: Sizes
    room: MemoryLimits
    lengths: Lengths
    like: Tradeoffs | None
    family: Family | None

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max((max(unit) for unit in self.units), default=self.config.max_length)

    @property
    def units(self) -> list[list[int]]:
        """Tokens of the rows of each group, a row without one by itself: what no micro-batch parts."""
        units = [list(unit) if isinstance(unit, tuple) else [unit] for unit in self.lengths]
        return [[min(n, self.config.max_length) for n in unit] for unit in units]

    @property
    def longest_group(self) -> int:
        """Tokens of the longest group, a row without one being a group by itself."""
        return max(map(sum, self.units), default=self.longest)

    def plan(self, choice: Tradeoffs) -> Plan:
        return Plan(self.run(choice), self.table(choice), self.sizes, choice, self.room, self.longest_group)

    def run(self, choice: Tradeoffs) -> RunShape:
        c = self.config
        return RunShape(max_tokens=choice.max_tokens, max_length=self.longest,
                   family=self.family or lora_of(c),
                   targets=self.targets(), blocks=c.block_range(self.structure.n_layer), 
                   kept=choice.kept, threads=self.ops.threads, precision=c.precision)

    def targets(self) -> tuple[str, ...]:
        """The trained projections of a block, by the network's names."""
        have = tuple(self.structure.linear_shapes())
        if self.config.targets == "all":
            return have
        asked = target_names(self.config.target_names())
        for name in asked:
            if name not in have:
                raise UsageError(f"this model has no {name} in its blocks", f"it has {', '.join(have)}")
        return asked

    def table(self, choice: Tradeoffs) -> tuple[Buffer, ...]:
        run = self.run(choice)
        groups = run.family.parameters(trained_shapes(self.structure, run))
        parameters = sum(group.size for group in groups)
        return (Buffer("lora", (parameters,), "run"), Buffer("dlora", (parameters,), "run"),
                *self.structure.buffers(run), Buffer("scratch", (self.ops.scratch_bytes,), "run", "uint8"),
                *optim.buffers(choice.optimizer_state, groups),
                Buffer("best", (parameters,), "run"))

    def peak(self, choice: Tradeoffs) -> int:
        return self.plan(choice).peak_bytes

    def best(self) -> Tradeoffs | None:
        """Of what fits the quickest."""
        return min(self._fitting(), key=self._cost, default=None)

    def _cost(self, choice: Tradeoffs) -> tuple[float, int]:
        plan = self.plan(choice)
        worth = ROUNDED if choice.optimizer_state != "float" else 1.0
        return worth * cost_per_token(self.structure, plan.run, plan.read_bytes), plan.peak_bytes

    def _fitting(self) -> Iterator[Tradeoffs]:
        """For each way to compute, the one that streams least."""
        ways = product(self.token_counts(), self.kept_counts(), self.states())
        for tokens, kept, state in ways if self.room.before <= self.room.budget else ():
            arena = self.plan(Tradeoffs(tokens, kept, 0, state)).arena_bytes
            left = self.room.budget - self.room.process - GROWTH - arena
            for streamed in self.streamings():
                if self.sizes.in_memory(streamed, tokens) <= left:
                    yield Tradeoffs(tokens, kept, streamed, state)
                    break

    def kept_counts(self) -> list[int]:
        """Of how many blocks activations may be kept: those of the last one always are."""
        if self.like:
            return [self.like.kept]
        live = self.structure.n_layer - self.config.block_range(self.structure.n_layer)[0]
        some = sorted({max(1, live * eighth // 8) for eighth in range(9)})
        return {"none": [live], "block": [1]}.get(self.config.recompute, some)

    def states(self) -> list[str]:
        """In what the optimizer's state may lie, the largest first."""
        if self.like:
            return [self.like.optimizer_state]
        asked = self.config.optimizer_state
        return ["float", "8bit"] if asked == "auto" else [asked]

    def streamings(self) -> range:
        """How many blocks may be streamed."""
        n = self.structure.n_layer
        return {"resident": range(1), "streamed": range(n, n + 1)}.get(self.config.weights, range(n + 1))

    def token_counts(self) -> list[int]:
        """Tokens that a micro-batch may hold at most: whole groups of the longest kind, up to a whole batch."""
        c = self.config
        if self.like:
            return [self.like.max_tokens]
        sums = sorted(map(sum, self.units), reverse=True)[:c.batch_size]
        whole = c.batch_size * c.max_length if c.packing or not sums else sum(sums)
        longest = self.longest_group
        most = max(longest, min(c.micro_batch, whole))
        return sorted({n * longest for n in STEPS if n * longest < most} | {most})

    def least(self) -> int:
        """The smallest budget that would do."""
        return self.peak(Tradeoffs(self.token_counts()[0], self.kept_counts()[0], self.streamings()[-1],
                                self.states()[-1]))

    def trades(self, best: Tradeoffs) -> Iterator[str]:
        """What a budget has cost, with the peak before and after, in the order in which it costs little."""
        at = replace(self, room=replace(self.room, budget=UNLIMITED)).best()
        assert at is not None
        texts = {
            "kept": f"activations are kept of {best.kept} of {at.kept} blocks, the others are computed again",
            "max_tokens": f"{best.max_tokens} tokens are computed at a time, not {at.max_tokens}, for the same batch",
            "streamed": f"{best.streamed} of {self.structure.n_layer} blocks, embedding and head are read at every use",
            "optimizer_state": "AdamW's moments lie in 8 bits, which changes the adapter a little",
        }
        for name, text in texts.items():
            if getattr(at, name) != (value := getattr(best, name)):
                before = at
                at = replace(at, **{name: value})
                yield f"{text}: {mib(self.peak(before))} -> {mib(self.peak(at))} MiB"


def mib(n: int) -> int:
    """Rounded up."""
    return -(-n // MIB)


def _refusal(p: _Planner) -> UsageError:
    """What would fit, and which one option would help most."""
    least = p.least()
    room = p.room
    halves: dict[str, Any] = {
        "max_length": max(2, p.longest // 2), "rank": max(1, p.config.rank // 2),
        "blocks": f"last:{max(1, p.structure.n_layer // 2)}", "precision": "fast", "recompute": "auto",
        "weights": "auto"}
    if "attn_q" in p.structure.linear_shapes():
        halves["targets"] = "q_proj,v_proj"
    changed = {name: replace(p, config=replace(p.config, **{name: value})).least() for name, value in halves.items()
               if getattr(p.config, name) != value}
    name = min(changed, key=lambda name: changed[name], default="")
    help_most = (f"; --{name.replace('_', '-')} {halves[name]} would help most: {mib(changed[name]) + 1}M"
                 if name and changed[name] < least - MIB else "")
    return UsageError(f"the budget is {mib(room.budget)} MiB ({room.asked}), training needs {mib(least)} MiB at least",
                      f"give it --memory {mib(least) + 1}M{help_most}")
