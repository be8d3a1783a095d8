"""(network, options, budget) -> the table of every buffer that training holds. The plan is the allocation.

Planning does no I/O. Training carves its arena from `Plan.buffers` and allocates nothing else of size.

Tradeoffs for memory change speed, and the result only by rounding: kept activations, tokens computed at a time, weights
in memory. The fastest plan that fits is taken, by `cost.cost_per_token`; so a bigger budget never makes a slower plan.
Optimizer state in 8 bits comes last, because it changes the adapter: the cost of such a plan is multiplied by a
penalty. Rows are never padded (micro-batches are flat), and common prefixes are computed once. So buffers are as large
as the longest rows need, and cost counts tokens to compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from ..adapters.base import KEYS, Group
from ..adapters.heads import VOCABULARY, HeadKind
from ..backends.arena import Buffer, arena_bytes
from ..backends.base import Backend
from ..data.lengths import FORWARD, Given, Lengths, read_lengths
from ..errors import BudgetError, UsageError, size_text
from ..models.base import Structure
from ..models.linear import RunShape, target_names
from ..models.stream import WeightBytes
from . import optim
from .config import TrainConfig
from .cost import Work, work_of
from .length import batch_of
from .source import SourceRoom
from .tradeoffs import Tradeoffs

if TYPE_CHECKING:
    from ..serving.rollouts.plan import AnswerPlan

MIB = 1 << 20
PROCESS = 52 * MIB  # Python and its libraries before training, if it is not this process; measured 43 to 51
GROWTH = 6 * MIB  # memory of Python, threads and the writer of adapters while training, beyond the table
ROW_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # rows in a micro-batch that are considered
PENALTY_8BIT = 1.25  # moments in 8 bits are taken if a plan with floats is slower by this factor, or does not fit
UNLIMITED = 1 << 62
DISK = "disk"  # of --recompute
DISK_GROWTH = 8 * MIB  # with it; of 4,096 tokens 3.5 were measured beyond the plan without this
NO_ROOM = SourceRoom()


@dataclass(frozen=True)
class MemoryLimits:
    """The limits of a plan in bytes. process: memory of this process before training (interpreter, libraries, data; no
    weights); before: its peak so far; budget: the most that it may use; asked: the budget as the user gave it.
    """

    process: int
    before: int = 0
    budget: int = UNLIMITED
    asked: str = ""


@dataclass(frozen=True)
class Plan:
    """A plan; sizes are in bytes. peak: expected of the whole process: interpreter, mapped weights, arena."""

    run: RunShape
    buffers: tuple[Buffer, ...]
    sizes: WeightBytes
    tradeoffs: Tradeoffs
    limits: MemoryLimits
    least_tokens: int  # a micro-batch may not have fewer
    traded: tuple[str, ...] = ()  # a sentence each
    answers: AnswerPlan | None = None

    @property
    def longest(self) -> int:
        """Tokens in a row at most."""
        return self.run.max_length

    @property
    def arena_bytes(self) -> int:
        return arena_bytes(self.buffers)

    @property
    def weight_bytes(self) -> int:
        """The most that is in memory at a time."""
        return self.sizes.in_memory(self.tradeoffs.streamed, self.run.max_tokens)

    @property
    def read_bytes(self) -> int:
        """Read from the file in a micro-batch, or written and read of the inputs of blocks."""
        return self.sizes.read(self.tradeoffs.streamed, self.run.lowest) + 2 * self.disk_bytes

    @property
    def disk_bytes(self) -> int:
        """The size of the file of the inputs of blocks; 0: they are in memory."""
        if not self.run.on_disk:
            return 0
        of_block, = (buffer.nbytes for buffer in self.buffers if buffer.name == "block_x")
        return of_block * (len(self.sizes.blocks) - self.run.lowest)

    @property
    def process_bytes(self) -> int:
        """Neither arena nor weights: interpreter, libraries, data."""
        more = DISK_GROWTH if self.run.on_disk else 0
        return self.limits.process + GROWTH + more + self.run.family.libraries

    @property
    def peak_bytes(self) -> int:
        return max(self.limits.before, self.process_bytes + self.weight_bytes + self.arena_bytes)

    def to_json(self) -> dict[str, object]:
        rows = [{"name": b.name, "shape": list(b.shape), "dtype": b.dtype, "bytes": b.nbytes, "lifetime": b.lifetime}
                for b in self.buffers]
        return {"buffers": rows, "arena_bytes": self.arena_bytes, "weight_bytes": self.weight_bytes,
                "process_bytes": self.process_bytes, "before_bytes": self.limits.before,
                "peak_bytes": self.peak_bytes, "budget_bytes": self.limits.budget, "budget": self.limits.asked,
                "traded": list(self.traded), "read_bytes": self.read_bytes, "disk_bytes": self.disk_bytes,
                **asdict(self.tradeoffs)}


def make(structure: Structure, config: TrainConfig, *, ops: Backend, sizes: WeightBytes, limits: MemoryLimits,
         lengths: Given = (), previous: Tradeoffs | None = None, heads: tuple[HeadKind, ...] = (VOCABULARY,),
         room: SourceRoom = NO_ROOM) -> Plan:
    """The fastest plan within `limits`.

    lengths: of the rows; empty while the data is unknown. previous: tradeoffs of an earlier plan; those that decide
    rounding are kept. heads: of the objective. room: memory that the source takes.

    Raises UsageError if nothing fits, and for options that the model cannot fulfil (blocks, rank, heads).
    """
    given = read_lengths(lengths, config.row_limit)
    sizes = replace(sizes, head_stays=not ops.is_paged)
    planner = _Planner(structure, config, ops, sizes, limits, given, previous, heads, room)
    run = planner.any_run
    run.family.check_shapes(structure.trained_shapes(run))
    if run.on_disk and not ops.is_paged:
        raise UsageError(f"--recompute {DISK} is given, and a GPU trains, whose memory no file holds",
                         "take --recompute block")
    best, unlimited = planner.fastest()
    if best is None:
        raise _refusal(planner)
    return replace(best, traded=tuple(planner.trades(best, unlimited)))


Costed = tuple[tuple[float, int], Plan]


@dataclass(frozen=True)
class _Planner:
    structure: Structure
    config: TrainConfig
    ops: Backend
    sizes: WeightBytes
    limits: MemoryLimits
    given: Lengths
    previous: Tradeoffs | None
    heads: tuple[HeadKind, ...]
    room: SourceRoom

    @cached_property
    def lengths(self) -> Lengths:
        return self.given.cut(self.config.row_limit)

    @property
    def batch(self) -> int:
        """Units in a step, or more, as held-out rows are among the lengths."""
        return batch_of(self.config, len(self.lengths.units))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.lengths.longest or self.config.row_limit

    @property
    def longest_group(self) -> int:
        """Tokens to compute of the longest group, which no micro-batch divides; a row is a group of one."""
        return self.lengths.longest_group or self.longest

    def plan(self, tradeoffs: Tradeoffs) -> Plan:
        least = self.longest if tradeoffs.prefix else self.longest_group
        return Plan(self.run(tradeoffs), self.table(tradeoffs), self.sizes, tradeoffs, self.limits, least,
                    answers=self.answers(tradeoffs.live))

    def run(self, tradeoffs: Tradeoffs) -> RunShape:
        c = self.config
        return RunShape(max_tokens=tradeoffs.max_tokens, max_length=self.longest,
                        family=c.family, targets=self.targets, blocks=c.block_range(self.structure.n_layer),
                        kept=tradeoffs.kept, threads=self.ops.threads, precision=c.precision, prefix=tradeoffs.prefix,
                        prefix_inputs=tradeoffs.prefix_inputs, heads=self.heads, on_disk=c.recompute == DISK)

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """The trained projections of a block, by the network's names."""
        have = self.structure.targets()
        if self.config.targets == "all":
            return have
        return target_names(self.config.target_names(), (*have, *self.structure.named_targets()))

    def table(self, tradeoffs: Tradeoffs) -> tuple[Buffer, ...]:
        run = self.run(tradeoffs)
        parameters = sum(group.size for group in self.groups)
        return (Buffer("lora", (parameters,), "run"), Buffer("dlora", (parameters,), "run"),
                *self.structure.buffers(run), Buffer("scratch", (self.ops.scratch_bytes,), "run", "uint8"),
                *optim.buffers(tradeoffs.optimizer_state, self.groups),
                *(Buffer(name, (parameters,), "run") for name in ("best", "start")[:1 + self.room.keeps_start]),
                *self.family_state, *self.room.buffers,
                *self.answer_buffers(run, tradeoffs.live))

    @cached_property
    def any_run(self) -> RunShape:
        """A run with what no tradeoff changes: family, targets, blocks, lengths and heads."""
        return self.run(Tradeoffs(1, 1, 0))

    @cached_property
    def groups(self) -> list[Group]:
        return self.structure.parameters(self.any_run)

    @cached_property
    def family_state(self) -> list[Buffer]:
        shapes = self.structure.trained_shapes(self.any_run)
        return [replace(buffer, saved=True) for buffer in self.any_run.family.state(shapes)]

    @cached_property
    def work(self) -> Work:
        """What every plan has to do."""
        return work_of(self.structure, self.any_run)

    def answers(self, live: int) -> AnswerPlan | None:
        """The plan of `live` answers in progress, if a run learns from its own."""
        known = self.room.answers
        return known and replace(known, live=live, virtual=self.config.family.virtual_tokens)

    def answer_buffers(self, run: RunShape, live: int) -> list[Buffer]:
        """Their buffers."""
        cache = self.structure.cache
        answers = self.answers(live)
        return [] if answers is None or cache is None else answers.buffers(cache, run.activations)

    def fastest(self) -> tuple[Plan | None, Plan]:
        """The fastest plan that fits, None where none does, and the fastest one in any memory."""
        fits = unlimited = None
        for plan in self._plans():
            unlimited = self._faster(unlimited, plan)
            streamed = self._fewest_streamed(plan)
            if streamed is not None:
                fits = self._faster(fits, replace(plan, tradeoffs=replace(plan.tradeoffs, streamed=streamed)))
        assert unlimited is not None
        return fits and fits[1], unlimited[1]

    def _faster(self, known: Costed | None, plan: Plan) -> Costed:
        """The cheaper of two plans."""
        cost = self._cost(plan)
        return known if known and known[0] <= cost else (cost, plan)

    def _cost(self, plan: Plan) -> tuple[float, int]:
        tradeoffs = plan.tradeoffs
        penalty = PENALTY_8BIT if tradeoffs.optimizer_state == "8bit" else 1.0
        passed_again = tradeoffs.kept / self.n_live if tradeoffs.prefix_inputs else 1.0
        share = self.lengths.computed_share(self.batch, tradeoffs.max_tokens, tradeoffs.prefix, passed_again)
        cost = share * penalty * self.work.cost_per_token(plan.run, plan.read_bytes)
        if tradeoffs.live:
            passes = replace(plan.run, max_tokens=tradeoffs.live)
            cost += FORWARD * self.work.cost_per_token(passes, plan.read_bytes)
        return cost, plan.peak_bytes

    def _plans(self) -> Iterator[Plan]:
        """Yields a plan for each way to compute, which streams as few blocks as the options let it."""
        streamed = self.streamings()[0]
        choices = product(self.token_counts(), self.kept_counts(), self.states(), self.lives(), (False, True))
        for (tokens, prefix), kept, state, live, prefix_inputs in choices:
            if prefix_inputs and (not prefix or kept == self.n_live):
                continue
            yield self.plan(Tradeoffs(tokens, kept, streamed, state, prefix, live, prefix_inputs))

    def _fewest_streamed(self, plan: Plan) -> int | None:
        """Blocks to stream at least for a plan to fit; None: it never does."""
        if self.limits.before > self.limits.budget:
            return None
        left = self.limits.budget - plan.process_bytes - plan.arena_bytes
        return next((streamed for streamed in self.streamings()
                     if self.sizes.in_memory(streamed, plan.run.max_tokens) <= left), None)

    @property
    def n_live(self) -> int:
        """Blocks that backward passes through."""
        return self.structure.n_layer - self.any_run.lowest

    def kept_counts(self) -> list[int]:
        """The numbers of blocks whose activations may be kept; those of the last block always are."""
        if self.previous:
            return [self.previous.kept]
        if self.config.recompute == "none":
            return [self.n_live]
        if self.config.recompute in ("block", DISK):
            return [1]
        return sorted({max(1, self.n_live * eighth // 8) for eighth in range(9)})

    def states(self) -> list[str]:
        """The formats that the optimizer's state may have, the largest first."""
        if self.previous:
            return [self.previous.optimizer_state]
        if self.config.optimizer_state == "auto":
            return ["float", "8bit"]
        return [self.config.optimizer_state]

    def lives(self) -> list[int]:
        """The numbers of answers in progress that are considered, the fewest first."""
        if self.previous or self.room.answers is None:
            return [self.previous.live if self.previous else 0]
        most = self.room.answers.live
        return sorted({max(1, most >> halved) for halved in range(most.bit_length())})

    def streamings(self) -> range:
        """The numbers of blocks that may be streamed."""
        n = self.structure.n_layer
        if self.config.weights == "resident":
            return range(1)
        if self.config.weights == "streamed":
            return range(n, n + 1)
        return range(n + 1)

    def token_counts(self) -> list[tuple[int, int]]:
        """Limits to consider as (tokens in a micro-batch, tokens in a prefix). The first goes up to a whole batch.
        prefix 0: a micro-batch holds any group; else it holds any row, and the prefix is common to many rows.
        """
        c = self.config
        if self.previous:
            return [(self.previous.max_tokens, self.previous.prefix)]
        packs = c.packing or not self.lengths.units
        whole = self.batch * c.row_limit if packs else self.lengths.largest(self.batch)
        most = max(self.longest_group, min(c.micro_batch, whole))
        counts = [(tokens, 0) for tokens in self._multiples(self.longest_group, most)]
        if self.structure.keeps_prefixes and (prefix := min(self.lengths.prefix, self.longest - 1)) > 0:
            counts += [(tokens, prefix) for tokens in self._multiples(self.longest, most)]
        return counts

    def _multiples(self, longest: int, most: int) -> list[int]:
        """Token counts of ROW_COUNTS rows of the longest kind with the prefix that all share, up to `most`."""
        shared = self.lengths.shared
        some = {shared + n * (longest - shared) for n in ROW_COUNTS}
        return sorted({tokens for tokens in some if tokens < most} | {most})

    def least(self) -> int:
        """The smallest budget that suffices."""
        streamed = self.streamings()[-1]
        kept = self.kept_counts()[0]
        state = self.states()[-1]
        live = self.lives()[0]
        return min(self.plan(Tradeoffs(tokens, kept, streamed, state, prefix, live)).peak_bytes
                   for tokens, prefix in self.token_counts())

    def trades(self, plan: Plan, unlimited: Plan) -> Iterator[str]:
        """A sentence for each tradeoff that the budget required, with the peak before and after; the cheapest first."""
        at = unlimited.tradeoffs
        best = plan.tradeoffs
        read = "embedding" if self.sizes.head_stays else "embedding and head"
        texts = best.texts(at, self.structure.n_layer, read)
        for names, text in texts.items():
            before = at
            at = replace(at, **{name: getattr(best, name) for name in names})
            if at != before:
                yield f"{text}: {_upper(self.plan(before).peak_bytes)} -> {_upper(self.plan(at).peak_bytes)}"
        if nbytes := plan.disk_bytes:
            yield f"the inputs of blocks are in a file of {_upper(nbytes)}, written and read for every micro-batch"


def mib(n: int) -> int:
    """Converts bytes to MiB, rounded up."""
    return -(-n // MIB)


def _upper(nbytes: int) -> str:
    return size_text(mib(nbytes) * MIB)


def _refusal(p: _Planner) -> BudgetError:
    """The budget that would suffice, and the one option that would help most."""
    least = p.least()
    smaller: dict[str, Any] = {
        "max_length": max(2, p.longest // 2), **p.config.family.smaller(), "precision": "fast", "recompute": "auto",
        "weights": "auto"}
    if KEYS not in p.config.family.adapts:
        smaller["blocks"] = f"last:{max(1, len(p.config.block_range(p.structure.n_layer)) // 2)}"
    if "attn_q" in p.structure.targets():
        smaller["targets"] = "q_proj,v_proj"
    now = p.config.to_json()
    options = vars(p.config)
    needs = {name: replace(p, config=TrainConfig(**{**options, name: value})).least()
             for name, value in smaller.items() if now[name] != value}
    hint = f"give it --memory {mib(least) + 1}M"
    if needs:
        name = min(needs, key=lambda name: needs[name])
        if needs[name] < least - MIB:
            hint += f"; --{name.replace('_', '-')} {smaller[name]} would help most: {mib(needs[name]) + 1}M"
    what = (f"this does not fit: training needs {_upper(least)} at least, the budget is {_upper(p.limits.budget)} "
            f"({p.limits.asked})")
    return BudgetError(what, hint, least)
