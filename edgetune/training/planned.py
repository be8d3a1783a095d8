"""The plan of a run of a model on this machine, in this process as it is, or on a board of `devices/`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ..backends.base import Backend
from ..backends.cpu import Cpu
from ..backends.opening import open_backend
from ..data.lengths import Given, read_lengths
from ..errors import BudgetError, EdgetuneError
from ..formats.gguf import Gguf
from ..machine import device
from ..models.base import Network
from ..models.networks import open_network
from ..models.stream import sizes
from ..objectives.base import Objective
from ..objectives.sft import Sft
from . import plan
from .config import TrainConfig
from .length import fitted
from .source import ExampleSource, source_of
from .tradeoffs import Tradeoffs


def least_bytes(gguf: Gguf, config: TrainConfig) -> int:
    """The least memory of a new process that trains with these options; 0 for a model that cannot be trained."""
    try:
        make_plan(open_network(gguf), replace(config, memory="1K"), board=device.Profile("any", "", ""))
    except BudgetError as error:
        return error.needed
    except EdgetuneError:
        return 0
    raise AssertionError("no model is trained in a KiB")


def make_plan(model: Network, config: TrainConfig, *, ops: Backend | None = None, lengths: Given = (),
              previous: Tradeoffs | None = None, board: device.Profile | None = None,
              objective: Objective | None = None, source: type[ExampleSource] | None = None) -> plan.Plan:
    """Plans for this process on this machine, or with `board` for a new process on that board with the smallest memory
    that it is sold with. ops: the backend (default: as of a Trainer). objective: names the trained heads. source: takes
    memory too (default: the objective's). Raises UsageError if nothing fits the budget or the network cannot be used.
    """
    asked = config.memory_asked
    structure = model.structure
    config = fitted(config, model)
    lengths = read_lengths(lengths, config.row_limit)
    objective = objective or Sft()
    objective.check_model(model.gguf)
    room = (source or source_of(objective)).room(objective, config, lengths, structure)
    make = partial(plan.make, structure, config, lengths=lengths, previous=previous, room=room, heads=objective.heads,
                   sizes=sizes(model.gguf.tensors.values(), structure.n_layer, structure.head_weights > 0))
    known = lengths.known + room.known
    if board is not None:
        limits = plan.MemoryLimits(plan.PROCESS + known, 0, config.memory_bytes(board.available), asked)
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
    limits = plan.MemoryLimits(process + known, before, budget, asked)
    return make(ops=ops, limits=limits)
