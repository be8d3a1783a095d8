"""The plan of a run of a model on this machine, in this process as it is, or on a board of `devices/`; its rows, and
max_length "auto" as a number: as long as the rows are, if memory has room for that.

Rows are read up to LONGEST_AUTO tokens. If a run over them does not fit the memory, the limit is halved and they are
read again, down to AUTO_LENGTH; then the plan raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..adapters import store
from ..backends.base import Backend
from ..backends.cpu import Cpu
from ..backends.opening import open_backend
from ..data import loader
from ..data.dataset import TENTH_OF_LABELS, Dataset
from ..data.lengths import Given, read_lengths
from ..data.parts import STDIN
from ..errors import BudgetError, EdgetuneError, UsageError
from ..formats.bundle import Bundle
from ..formats.gguf import ENCODERS, Gguf
from ..machine import device
from ..models.base import Network
from ..models.networks import network_of, open_network
from ..models.stream import sizes
from ..objectives.base import Objective, make_objective
from ..objectives.sft import Sft
from ..options import AUTO
from . import plan
from .anchored import lengths_with_anchors
from .config import AUTO_LENGTH, TrainConfig
from .length import LONGEST_AUTO, fitted, reading_limit, sized
from .source import ExampleSource, source_of
from .tradeoffs import Tradeoffs

LABELLED = "labelled"  # the source of examples of encoders that learn labels
Load = Callable[[TrainConfig], list[Dataset | None]]


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


def objective_for(model: Gguf) -> Objective:
    """The objective by which a model learns where none is named."""
    return make_objective(network_of(model).objective, {})


def load_sized(bundle: Bundle, config: TrainConfig, objective: Objective, load: Load,
               board: device.Profile | None = None, shortens: bool = True,
               reserved: int = 0) -> tuple[TrainConfig, Objective, list[Dataset | None]]:
    """(the options with max_length as a number, the objective for these rows, the rows that `load` reads). shortens:
    whether the rows may be read again, cut shorter, where they do not fit. reserved: bytes of memory that are left to
    processes that grade.

    Raises the errors of `load`, and of the objective for rows that it cannot learn.
    """
    network = open_network(bundle.gguf)
    if config.prompt and bundle.gguf.architecture in ENCODERS:
        raise UsageError(f"prompt is {config.prompt}, and an encoder reads a question alone", "leave it out")
    network.structure.head_groups(objective.heads)
    objective.check_model(bundle.gguf)  # both raise before rows are read in vain
    bundle.gguf.release()
    device.trim()  # while rows are read, this process and the one that reads them have memory
    if not isinstance(config.max_length, str):
        return config, *prepared(objective, load(config))
    limit = reading_limit(config.max_length, context_of(bundle.gguf))
    while True:
        fitted, sets = prepared(objective, load(replace(config, max_length=limit)))
        found = sized_by(config, fitted, sets)
        is_least = found.row_limit == AUTO_LENGTH
        if not shortens or is_least or _fits(network, found, fitted, sets, board, reserved):
            return found, fitted, sets
        limit = max(AUTO_LENGTH, limit // 2)


def load_run(bundle: Bundle, data: Path, held_out: str | Path | None, config: TrainConfig, objective: Objective,
             board: device.Profile | None = None, reserved: int = 0,
             least: int = 1) -> tuple[TrainConfig, Objective, Dataset, Dataset | None]:
    """(the options with max_length as a number, the objective for these rows, the rows that a run learns, those that it
    holds out), read by `loader.load_run`. board: the device that the run is planned for. reserved: as of load_sized.
    least: as of `loader.load_run`.
    """
    config, objective, (rows, held) = load_sized(
        bundle, config, objective,
        lambda asked: [*loader.load_run(bundle.gguf.path, data, held_out, asked, objective.rows, least)], board,
        STDIN not in (str(data), str(held_out)), reserved)
    assert rows
    return config, objective, rows, held


def least_held_out(objective: Objective, config: TrainConfig, start: object = None) -> int:
    """The least number of rows that a run holds out by itself: a tenth that is less, of labels, is learned, and parts
    of all rows test it (runs/folds.py). Not where an adapter, start, may have learned them, and where the options ask
    for measurements while it trains.
    """
    is_measured = config.eval_every or config.patience not in (0, AUTO)
    return 1 if start or is_measured or objective.source != LABELLED else TENTH_OF_LABELS


def prepared(objective: Objective, sets: list[Dataset | None]) -> tuple[Objective, list[Dataset | None]]:
    """The objective for these rows, and the rows as it learns them, and measures those that are held out. Raises
    DataError for rows that it cannot learn.
    """
    rows, held = sets
    if rows is None:
        return objective, sets
    objective = objective.fitted(rows.examples)
    measured = objective.measured(held.examples) if held else []
    return objective, [replace(rows, examples=objective.prepared(rows.examples)),
                       held and replace(held, examples=measured)]


def as_begun(config: TrainConfig, out: Path) -> TrainConfig:
    """The options, in which the run's max_length replaces auto: a resumed run keeps it."""
    was = store.read_run(out).get("options", {}).get("max_length")
    return replace(config, max_length=was) if was and isinstance(config.max_length, str) else config


def sized_by(config: TrainConfig, objective: Objective, sets: Sequence[Dataset | None]) -> TrainConfig:
    """The options with max_length as a number, auto by the longest of the rows."""
    return sized(config, max((objective.room(one) for found in sets if found for one in found.examples), default=0))


def context_of(gguf: Gguf) -> int:
    """Tokens that a model was made for."""
    found = gguf.metadata.get(f"{gguf.architecture}.context_length", LONGEST_AUTO)
    assert isinstance(found, int)  # the reader has checked it
    return found


def _fits(network: Network, config: TrainConfig, objective: Objective, sets: Sequence[Dataset | None],
          board: device.Profile | None, reserved: int) -> bool:
    parts = [found.examples for found in sets if found]
    try:
        make_plan(network, config, objective=objective, board=board,
                  lengths=lengths_with_anchors(objective, config, *parts).with_known(reserved))
    except UsageError:
        return False
    return True
