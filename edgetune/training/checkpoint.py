"""The state of a run on disk: files checkpoint-STEP in its folder, of which the last two are kept, each written whole.

A file holds one line of JSON {"format": 1, "arrays": [[name, bytes], ...], "meta": {...}}, then the arrays' bytes, then
the SHA-256 of all of it. Arrays are written and read without a copy.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..disk import cannot_write, replaced
from ..errors import FormatError, MismatchError

PREFIX = "checkpoint-"
KEPT = 2
FORMAT = 1
_CHUNK = 2**20
_DIGEST = hashlib.sha256().digest_size
WINDOW = 5  # steps whose losses are averaged at the beginning and at the end of a run
ERRORS = 2.0  # standard errors by which a loss must be higher to be worse
KNOWN = 0.5  # share of the held-out loss; training rows with a lower loss are known better than held-out ones
MOST = 256  # numbers that are kept of a measurement: of more rows, means of neighbours


@dataclass(frozen=True)
class Checkpoint:
    """A file whose checksum was right."""

    path: Path
    meta: dict[str, Any]
    arrays: tuple[tuple[str, int], ...]  # name and bytes, in the order of the file
    start: int  # where the first array begins

    def read(self, into: Callable[[str], np.ndarray]) -> None:
        """Fills the array into(name) of every name. Raises MismatchError before that where sizes differ."""
        for name, nbytes in self.arrays:
            if (wanted := into(name).nbytes) != nbytes:
                raise MismatchError(f"{self.path} holds {nbytes} bytes of {name}, this run {wanted}",
                                    "start a new run in another folder")
        with self.path.open("rb") as file:
            file.seek(self.start)
            for name, nbytes in self.arrays:
                if file.readinto(into(name).data.cast("B")) != nbytes:
                    raise FormatError(f"{self.path} changed while it was read", "try again")


def save(folder: Path, step: int, arrays: Mapping[str, np.ndarray], meta: dict[str, Any]) -> int:
    """Writes folder/checkpoint-STEP, removes all but it and the one before, and returns its bytes. meta must be JSON.

    Raises DiskError when the disk refuses; the older ones then remain.
    """
    path = folder / f"{PREFIX}{step}"
    sizes = [[name, array.nbytes] for name, array in arrays.items()]
    head = json.dumps({"format": FORMAT, "arrays": sizes, "meta": meta}).encode() + b"\n"
    parts: list[bytes | memoryview] = [head, *(array.data.cast("B") for array in arrays.values())]
    digest = hashlib.sha256()
    with replaced(path) as beside, beside.open("wb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
        file.write(digest.digest())
        nbytes = file.tell()
    before = [other for other in found(folder) if _step(other) < step][1 - KEPT:]
    _remove(other for other in found(folder) if other not in (path, *before))
    return nbytes


def newest(folder: Path) -> tuple[Checkpoint, list[str]]:
    """The newest whole checkpoint, and the defect of each newer one. Raises FormatError if none is whole."""
    wrong: list[str] = []
    for path in reversed(found(folder)):
        try:
            return _open(path), wrong
        except OSError as error:
            wrong.append(f"{path.name} cannot be read: {error.strerror}")
        except FormatError as error:
            wrong.append(error.what)
    raise FormatError(f"{folder} holds no checkpoint that is whole" + "".join(f", {what}" for what in wrong),
                      "start a new run in another folder")


def found(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the oldest first; their checksums are not checked."""
    return sorted((p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdecimal()), key=_step)


def remove_all(folder: Path) -> None:
    _remove(found(folder))


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from None


def _step(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def _open(path: Path) -> Checkpoint:
    """Raises FormatError unless the file's last bytes are the SHA-256 of all others."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < _DIGEST or _sha256(file, size - _DIGEST) != file.read():
            raise FormatError(f"{path.name} is damaged: its checksum is wrong")
        file.seek(0)
        head = json.loads(file.readline())
        if head["format"] != FORMAT:
            raise FormatError(f"{path.name} is of format {head['format']}, this edgetune reads {FORMAT}")
        return Checkpoint(path, head["meta"], tuple((name, nbytes) for name, nbytes in head["arrays"]), file.tell())


def _sha256(file: BinaryIO, nbytes: int) -> bytes:
    """The SHA-256 of the next nbytes."""
    digest = hashlib.sha256()
    while nbytes > 0 and (chunk := file.read(min(nbytes, _CHUNK))):
        digest.update(chunk)
        nbytes -= len(chunk)
    return digest.digest()


@dataclass
class RunState:
    """The measurements of a run, and the adapter to keep by them. A run has legs: the first, and one for each time that
    epochs were added after its end.

    The mean over few held-out rows is noisy: with six rows it rises by a fifth when one gets less likely, while more
    and more of all answers become right. A measurement is therefore worse than the lowest only if paired differences of
    its rows say so, by the rule of standard errors (Breiman et al. 1984, section 3.4.3). The last adapter that is not
    worse is kept. A worse held-out loss is no overfitting while the training rows are no better known than the held-out
    ones: a run learns the form of answers first, and late which answer belongs to which question.

    best, best_step: the held-out loss of the adapter to keep, and the step of its measurement: the leg's last one that
    is not worse than its lowest; the leg's first adapter counts. lowest, lowest_rows: the lowest loss after that, in
    all and of the rows. misses: measurements since it; worse: the last ones of these in a row that are worse;
    overfitted: the same, counted only if the training rows were known.
    """

    eval_before: float | None = None
    eval_now: float | None = None
    best: float | None = None
    best_step: int = 0
    lowest: float | None = None
    lowest_rows: list[float] = field(default_factory=list)
    misses: int = 0
    worse: int = 0
    overfitted: int = 0
    measured: int = -1  # the last step after which the held-out loss was measured
    history: list[list[float]] = field(default_factory=list)  # [step, held-out loss] of every measurement
    first_losses: list[float] = field(default_factory=list)  # of the first steps, WINDOW at most
    last_losses: list[float] = field(default_factory=list)
    losses: int = 0  # steps whose loss was taken
    start: dict[str, Any] | None = None  # the adapter that the run began from: path and fingerprint; None: the seed's
    begun_at: int = 0  # steps before this leg
    more: float = 0.0  # epochs of this leg; 0: those of the options
    loss_at_start: float | None = None  # of this leg, if an earlier one has measured it
    measured_before: int = 0  # measurements of earlier legs
    legs: list[dict[str, Any]] = field(default_factory=list)  # the earlier ones
    seconds: float = 0.0
    written: int = 0  # bytes of checkpoints
    changed: list[dict[str, Any]] = field(default_factory=list)  # changes allowed to resumes: name, was, now

    def measure(self, step: int, loss: float, rows: Sequence[float] = ()) -> bool:
        """Records the held-out loss, in all and of the rows; returns whether its adapter is to be kept."""
        self.history.append([step, loss])
        self.measured = step
        self.eval_now = loss
        if step == 0:
            self.eval_before = loss
        if step > self.begun_at:
            self._count(loss, few(rows))
        started, before = self.leg_history[0]
        is_no_better = step > self.begun_at == started and loss >= before
        if not math.isfinite(loss) or self.worse or is_no_better:
            return False
        self.best = loss
        self.best_step = step
        return True

    def _count(self, loss: float, rows: list[float]) -> None:
        if self.lowest is None and self.best_step > self.begun_at:  # the state of an earlier version
            self.lowest = self.best
        if math.isfinite(loss) and (self.lowest is None or loss < self.lowest):
            self.lowest = loss
            self.lowest_rows = rows
            self.misses = 0
            self.worse = 0
            self.overfitted = 0
            return
        self.misses += 1
        is_unknown = not math.isfinite(loss) or len(rows) != len(self.lowest_rows)
        is_worse = is_unknown or is_higher(rows, self.lowest_rows)
        self.worse = self.worse + 1 if is_worse else 0
        # training rows are hardly better known than held-out ones; by losses, not by rewards
        is_learning = bool(self.last_losses) and 0 < KNOWN * loss < mean(self.last_losses)
        self.overfitted = self.overfitted + 1 if is_worse and not is_learning else 0

    def learn(self, loss: float) -> None:
        """Takes the loss of a step."""
        self.losses += 1
        if len(self.first_losses) < WINDOW:
            self.first_losses.append(loss)
        self.last_losses = [*self.last_losses, loss][-WINDOW:]

    def forget_measurements(self) -> RunState:
        """The state where other rows are held out from now on."""
        return RunState(first_losses=self.first_losses, last_losses=self.last_losses, losses=self.losses,
                        start=self.start, begun_at=self.begun_at, more=self.more, legs=self.legs,
                        seconds=self.seconds, written=self.written, changed=self.changed)

    @property
    def from_seed(self) -> bool:
        """Whether the seed determines the adapter that this leg began with."""
        return self.start is None and self.begun_at == 0

    @property
    def leg_history(self) -> list[tuple[int, float]]:
        """(step, held-out loss) of this leg, that of its first adapter included."""
        before = [] if self.loss_at_start is None else [(self.begun_at, self.loss_at_start)]
        return [*before, *((int(step), loss) for step, loss in self.history[self.measured_before:])]

    @property
    def learned(self) -> tuple[float, float] | None:
        """The mean loss of the first and of the last steps, which are different ones; None where none was done."""
        if not self.first_losses:
            return None
        each = max(min(WINDOW, self.losses // 2), 1)
        return mean(self.first_losses[:each]), mean(self.last_losses[-each:])

    def measurements(self) -> dict[str, Any]:
        """The part of run.json on held-out rows; null for a loss that is unknown, NaN or infinite."""
        after = self.eval_now if self.best is None else self.best
        return {"loss_before": _finite(self.eval_before), "loss_after": _finite(after), "best_step": self.best_step,
                "history": [[int(step), _finite(loss)] for step, loss in self.history]}


def next_leg(record: Mapping[str, Any], more: float) -> RunState:
    """The state at the beginning of `more` epochs after the end of a run, of which `record` is run.json's content."""
    held = record["held_out"] or {"loss_before": None, "loss_after": None, "best_step": 0, "history": []}
    done = int(record["steps"])
    leg = {"begun_at": record["begun_at"], "steps": done, "more": record["more"], "best_step": held["best_step"],
           "loss_after": held["loss_after"], "verdict": record["verdict"]}
    loss = held["loss_after"]
    history = [[step, math.nan if loss is None else loss] for step, loss in held["history"]]
    return RunState(eval_before=held["loss_before"], best=loss, best_step=done, eval_now=loss, loss_at_start=loss,
                    measured=-1 if loss is None else done, history=history, measured_before=len(history),
                    start=record["start"], begun_at=done, more=more, legs=[*record["legs"], leg],
                    seconds=record["seconds"], changed=record["changed"])


def mean(values: Sequence[float]) -> float:
    """The same as statistics.fmean, whose module takes half a megabyte of a small board."""
    return math.fsum(values) / len(values)


def few(rows: Sequence[float]) -> list[float]:
    """The losses of rows; of more than MOST rows, means over equal numbers of neighbours."""
    size = -(-len(rows) // MOST) or 1
    return [mean(rows[i:i + size]) for i in range(0, len(rows), size)]


def is_higher(rows: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the losses of rows are higher in one measurement than in another, by more than ERRORS standard errors."""
    differences = [a - b for a, b in zip(rows, others, strict=True)]
    if len(differences) < 2:
        return sum(differences) > 0
    return mean(differences) > ERRORS * float(np.std(differences, ddof=1)) / math.sqrt(len(differences))


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
