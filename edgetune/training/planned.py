"""The plan of a run of a model on this machine, in this process as it is, or on a board of `devices/`."""

from __future__ import annotations

from functools import partial

from ..adapters.base import Family
from ..adapters.low_rank import lora_of
from ..adapters.valued import ValuedLora
from ..backends.base import Backend
from ..backends.cpu import Cpu
from ..backends.opening import open_backend
from ..data.lengths import Given, Lengths, read_lengths
from ..machine import device
from ..models.base import Network
from ..models.stream import sizes
from ..objectives.base import Objective
from ..objectives.drawn import Drawn
from . import length, plan
from .config import TrainConfig
from .rollouts import answer_plan


def make_plan(model: Network, config: TrainConfig, *, ops: Backend | None = None, lengths: Given = (),
              previous: plan.Tradeoffs | None = None, board: device.Profile | None = None,
              family: Family | None = None, objective: Objective | None = None) -> plan.Plan:
    """The plan for this model on this machine, in this process with what it uses now; or, with `board`, in a new
    process on that board, with the smallest memory that it is sold with. ops: what will compute (default: as of a
    Trainer). objective: one that learns from answers takes memory for them. UsageError where nothing fits the budget.
    """
    asked = config.memory_asked
    structure = model.structure
    lengths = read_lengths(lengths, config.row_limit)
    if objective and objective.needs_values and family is None:
        family = ValuedLora(**lora_of(config).options(), width=structure.head_weights // structure.n_vocab)
    make = partial(plan.make, structure, config, lengths=lengths, previous=previous, family=family,
                   sizes=sizes(model.gguf.tensors.values(), structure.n_layer))
    if isinstance(objective, Drawn):
        make = partial(make, answers=answer_plan(objective, _at_once(config, lengths, objective), lengths,
                                                 config.row_limit, structure.n_vocab),
                       keeps_start=objective.keeps_start)
    if board is not None:
        limits = plan.MemoryLimits(plan.PROCESS + lengths.known, 0, config.memory_bytes(board.available), asked)
        return make(ops=Cpu(device.thread_count(config.threads or board.cores)), limits=limits)
    ops = ops or open_backend(config.backend, device.thread_count(config.threads), lambda _: None)  # takes memory
    if config.memory:
        device.refuse_huge_pages()
    model.gguf.release()
    device.trim()
    available = device.read_device().memory_available
    process = device.rss()
    before = max(device.peak_rss(), device.peak_of_children()) if config.memory else 0
    budget = config.memory_bytes(available + process)
    limits = plan.MemoryLimits(process + lengths.known, before, budget, asked)
    return make(ops=ops, limits=limits)


def _at_once(config: TrainConfig, lengths: Lengths, objective: Drawn) -> int:
    """Prompts that are answered together; 1 while it is not known how many there are."""
    units = len(lengths.units)
    steps = objective.steps_per_generation
    return (steps * length.batch_of(config, units) if steps else units) or 1
