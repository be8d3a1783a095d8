"""What a run's folder says, of any version and any state: done, paused, failed or still running.

Of more steps than a chart can show every second, fourth, eighth, ... is kept, as it was measured, and the last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..adapters.store import RUN
from ..disk import read_object
from ..errors import FormatError
from ..persisted import from_json
from ..training.metrics import NAME as METRICS
from .tables import GovernorDecision, Measurement, Resumption, Step, read_events

SHOWN = 600  # steps, and measurements, that are kept at most
DECISIONS = 100  # of the governor, and resumptions, that are kept at most: the last
LARGEST = 16 << 20  # bytes of run.json
T = TypeVar("T")


@dataclass(frozen=True)
class HeldOutFacts:
    """Facts of the held-out rows. The losses are unknown until they are measured."""

    digest: str = ""
    rows: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    best_step: int = 0


@dataclass(frozen=True)
class RunVerdict:
    """What a person can make of the run, in a sentence. kind: learned, still falling, overfitted, worse, unmeasured."""

    kind: str = ""
    sentence: str = ""
    step: int | None = None


@dataclass(frozen=True)
class ExactAnswers:
    """Held-out rows answered before and after. before, after: the share that is exact; structured: that of answers that
    are held to the schema of the rows; pairs: {prompt, expected, before, after}.
    """

    rows: int = 0
    before: float | None = None
    after: float | None = None
    structured: float | None = None
    pairs: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class RunRecord:
    """The part of run.json that is shown. A field that a version did not write has its default."""

    status: str = "running"
    edgetune: str = ""
    base: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] | None = None
    family: dict[str, Any] | None = None
    origin: dict[str, Any] | None = None
    start: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    total_steps: int = 0
    seconds: float = 0.0
    isa: str = ""
    products: str = ""
    threads: int = 0
    peak_rss_mib: float = 0.0
    changed: list[Any] = field(default_factory=list)
    measure: str = "loss"  # or "reward": a held-out loss is less the mean reward of answers


@dataclass(frozen=True)
class History:
    """A run. steps: every 1st, 2nd, 4th, ... of all step_count that were done, and the last; measurements and decisions
    likewise, of these the latest. seconds: of all. damaged: lines of metrics.jsonl that could not be read.
    """

    folder: Path
    record: RunRecord
    held_out: HeldOutFacts | None
    verdict: RunVerdict | None
    answers: ExactAnswers | None
    steps: list[Step]
    every: int
    step_count: int
    seconds: float
    measurements: list[Measurement]
    decisions: list[GovernorDecision]
    decision_count: int
    resumes: list[Resumption]
    damaged: int

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def of_rewards(self) -> bool:
        return self.record.measure == "reward"

    def measured(self, loss: float | None) -> float | None:
        """The reward that a held-out loss stands for where the run is of rewards, else the loss."""
        return -loss if loss is not None and self.of_rewards else loss

    @property
    def last_step(self) -> int:
        return self.steps[-1].step if self.steps else self.record.steps

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second over the steps that are kept."""
        seconds = sum(step.seconds for step in self.steps)
        return sum(step.tokens for step in self.steps) / seconds if seconds > 0 else None


class _Thinned(Generic[T]):
    """Thins things to SHOWN at most: all, or every second, fourth, ... from the first on, and the last."""

    def __init__(self) -> None:
        self.every = 1
        self.count = 0
        self._kept: list[T] = []
        self._last: list[T] = []

    def add(self, thing: T) -> None:
        if self.count % self.every == 0:
            self._kept.append(thing)
            if len(self._kept) == SHOWN:
                del self._kept[1::2]
                self.every *= 2
        self._last = [thing]
        self.count += 1

    @property
    def things(self) -> list[T]:
        is_kept = self._last and self._kept[-1] is self._last[0]
        return self._kept if is_kept else self._kept + self._last


def read_history(folder: str | Path) -> History:
    """Raises FormatError for a folder without a run or a damaged run.json, DiskError for metrics.jsonl."""
    folder = Path(folder)
    run = read_object(folder / RUN, "restore it from a copy", LARGEST)
    if run is None and not (folder / METRICS).is_file():
        raise FormatError(f"{folder} holds no run: there is neither {RUN} nor {METRICS}",
                          "name the output folder of a training")
    run = run or {}  # it begins with metrics
    steps = _Thinned[Step]()
    measurements = _Thinned[Measurement]()
    decisions = deque[GovernorDecision](maxlen=DECISIONS)
    resumes = deque[Resumption](maxlen=DECISIONS)
    decision_count = 0
    damaged = 0
    seconds = 0.0
    for event in read_events(folder):
        if isinstance(event, Step):
            steps.add(event)
            seconds += event.seconds
        elif isinstance(event, Measurement):
            measurements.add(event)
        elif isinstance(event, GovernorDecision):
            decisions.append(event)
            decision_count += 1
        elif isinstance(event, Resumption):
            resumes.append(event)
        else:
            damaged += 1
    record = _known(RunRecord, run, folder)
    return History(folder, record, _part(HeldOutFacts, run, "held_out", folder),
                   _part(RunVerdict, run, "verdict", folder), _part(ExactAnswers, run, "answers", folder),
                   steps.things, steps.every, steps.count, record.seconds or seconds, measurements.things,
                   list(decisions), decision_count, list(resumes), damaged)


def _part(kind: type[T], run: Mapping[str, Any], name: str, folder: Path) -> T | None:
    return None if run.get(name) is None else _known(kind, run[name], folder)


def _known(kind: type[T], found: Any, folder: Path) -> T:
    """Takes the fields of a JSON object that `kind` has: later versions may write more."""
    names = {spec.name for spec in fields(kind)}  # type: ignore[arg-type]
    if isinstance(found, Mapping):
        found = {name: value for name, value in found.items() if name in names}
    return from_json(kind, found, str(folder / RUN))
