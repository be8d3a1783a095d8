"""The answer of a device to a task, a folder: answer.json, and what it learned. None of its rows are in it.

    answer.json              which task, how much was learned, the losses on the device's own held-out rows
    update.safetensors       of each projection, in float16: the change of the half that the round trains, or A and B
    manifest.sig             the signature, where there is one
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....adapters.lora import Lora, Pair
from ....disk import MIB, new_folder, open_regular, sha256
from ....errors import FormatError, MismatchError, NumericsError
from ....formats import signature
from ....formats.safetensors import Safetensors, TensorPlace
from ....formats.signature import Check
from ....formats.work import finish
from ..signed_folder import check_file, read_facts, write_facts
from .low_rank_sums import best_of_rank, term_of
from .options import A, B
from .task import RoundTask

VERSION = 1
FACTS = "answer.json"
UPDATE = "update.safetensors"
MOST_TOKENS = 10**12
LEAVE_OUT = "leave the answer out"


@dataclass(frozen=True)
class AnswerFacts:
    """answer.json. task: the name of the task; device: a name, which the key replaces if the answer is signed
    in a fleet that devices do not join.
    update: SHA-256 of the file. rank: of the pairs. rows, tokens: learned, of tokens the supervised ones. held_rows: of
    the device's own, by which the losses are measured. norm: of the change of the weights. noise: standard deviation of
    the noise that was added to each value, 0.0 for none; noise_norm: the norm to which the update was scaled down
    before. With noise no losses are said, and neither seconds nor peak_mib, which are of the training; with that of the
    task, rows and tokens are the least that it takes, so that they say nothing and all devices weigh the same. kind: of
    the device, as machine.device has it; "": not said.
    """

    version: int
    task: str
    device: str
    base: str
    update: str
    half: str
    rank: int
    rows: int
    tokens: int
    norm: float
    noise: float = 0.0
    held_rows: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    seconds: float = 0.0
    peak_mib: float = 0.0
    edgetune: str = ""
    kind: str = ""
    noise_norm: float = 0.0


@dataclass(frozen=True, eq=False)
class RoundAnswer:
    """An opened answer: an Update whose pairs are read from its file one at a time. places: of its arrays; bytes: of
    the whole answer.
    """

    folder: Path
    facts: AnswerFacts
    device: str
    start: Lora
    places: dict[str, TensorPlace]
    bytes: int

    @property
    def tokens(self) -> int:
        return self.facts.tokens

    def pair(self, name: str) -> Pair:
        """Returns the pair of a projection after the round, whose values need not be finite."""
        start = self.start[name]
        half = self.facts.half
        with open_regular(self.folder / UPDATE) as file, np.errstate(invalid="ignore", over="ignore"):
            read = {one: self.places[each].read(file, each, self.folder / UPDATE) for one in half
                    for each in [f"{name}.{one}"]}
            if half == A + B:
                return Pair(read[A], read[B], start.scale)
            moved = getattr(start, half) + read[half]
        return Pair(moved if half == A else start.a, moved if half == B else start.b, start.scale)

    def began(self, start: Pair) -> Pair:
        """Returns the pair with which the device began."""
        return began_at(start, self.facts.rank)


def began_at(start: Pair, rank: int) -> Pair:
    """Returns the best pair of a device's rank for a task's pair: itself, if the rank is the task's."""
    return start if rank == start.rank else best_of_rank([term_of(start)], rank, start.scale)[0]


def open_answer(folder: Path, task: RoundTask, check: Check = signature.check) -> RoundAnswer:
    """Returns an answer that is whole and answers this task. check: of its signature; any but the default leaves the
    device the name that it gives itself. Raises FormatError or MismatchError for one that cannot count.
    """
    facts, _, signer = read_facts(folder, FACTS, AnswerFacts, VERSION, check)
    source = str(folder / FACTS)
    if facts.task != task.name:
        raise MismatchError(f"{source} answers the task {facts.task:.12}, not {task.name:.12}", LEAVE_OUT)
    if facts.base != task.base.fingerprint:
        raise MismatchError(f"{source} was trained on {facts.base:.19}, the task is of {task.base.fingerprint:.19}",
                            LEAVE_OUT)
    if facts.half != task.half or not 1 <= facts.rank <= _rank(task) or (facts.rank < _rank(task)
                                                                        and task.half != A + B):
        raise MismatchError(f"{source} has {facts.half!r:.10} of rank {facts.rank}, the task asks for {task.half!r} of "
                            f"rank {_rank(task)}", LEAVE_OUT)
    if not (task.facts.least_rows <= facts.rows <= MOST_TOKENS and 1 <= facts.tokens <= MOST_TOKENS):
        raise MismatchError(f"{source} learned {facts.rows} rows of {facts.tokens} tokens, the task asks for "
                            f"{task.facts.least_rows} rows", LEAVE_OUT)
    losses = [facts.loss_before or 0.0, facts.loss_after or 0.0]
    _check_noise(facts, task, source)
    numbers = [facts.norm, facts.noise, facts.noise_norm, facts.seconds, facts.peak_mib, *losses]
    if not all(math.isfinite(number) and number >= 0.0 for number in numbers) or not (
            0 <= facts.held_rows <= MOST_TOKENS):
        raise FormatError(f"{source} has a number below 0, or one that is none", LEAVE_OUT)
    size = check_file(folder / UPDATE, facts.update, most_bytes(task))
    shapes = shapes_of(task.pairs, facts.half, facts.rank)
    with Safetensors(folder / UPDATE) as file:
        if file.shapes.keys() != shapes.keys() or any(file.shapes[name] != shape for name, shape in shapes.items()):
            raise MismatchError(f"{folder / UPDATE} has other projections or shapes than the task", LEAVE_OUT)
        if other := {place.type for place in file.places.values()} - {"F16", "F32"}:
            raise MismatchError(f"{folder / UPDATE} has values of the type {min(other)}, not F16", LEAVE_OUT)
        places = file.places
    device = signer if signer and check is signature.check else facts.device
    return RoundAnswer(folder, facts, device, task.pairs, places, size + (folder / FACTS).stat().st_size)


def write_answer(folder: Path, facts: AnswerFacts, arrays: dict[str, NDArray[np.float16]],
                 key: Path | None, work: Path | None = None) -> AnswerFacts:
    """Writes an answer as a new folder, whole or not at all; returns its facts with the SHA-256 of the update. arrays:
    by projection and half. work: the folder of work for it. Raises NumericsError for values that are not finite in
    float16.
    """
    from safetensors.numpy import save
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise NumericsError(f"{name} of the update is not finite in float16", "lower the --lr of the task")
    with new_folder(folder) as beside:
        (beside / UPDATE).write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
        facts = replace(facts, update=sha256(beside / UPDATE))
        write_facts(beside, FACTS, facts, key)
        if work:
            finish(work, beside)
    return facts


def shapes_of(start: Lora, half: str, rank: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array of an update, by its name in the file."""
    found: dict[str, tuple[int, ...]] = {}
    for name, pair in start.items():
        found |= {f"{name}.{A}": (rank, pair.a.shape[1])} if A in half else {}
        found |= {f"{name}.{B}": (pair.b.shape[0], rank)} if B in half else {}
    return found


def _check_noise(facts: AnswerFacts, task: RoundTask, source: str) -> None:
    """Raises MismatchError for less noise than the task asks for, or a weight that would tell of the rows."""
    if (noise := task.noise) is None:
        return
    if facts.noise < noise.deviation * (1.0 - 1e-9) or facts.noise_norm > noise.most * (1.0 + 1e-9):
        raise MismatchError(f"{source} has noise of {facts.noise:g} with the norm {facts.noise_norm:g}, the task asks "
                            f"for {noise.deviation:g} with {noise.most:g}", LEAVE_OUT)
    if facts.tokens != 1:
        raise MismatchError(f"{source} weighs {facts.tokens} tokens, and with noise all devices weigh 1", LEAVE_OUT)


def _rank(task: RoundTask) -> int:
    return next(iter(task.pairs.values())).rank


def most_bytes(task: RoundTask) -> int:
    """Returns the bytes of an update at most: its values as float32, and a header."""
    return MIB + 4 * sum(math.prod(shape) for shape in shapes_of(task.pairs, task.half, _rank(task)).values())
