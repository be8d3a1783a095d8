"""A tutor's job, in its process: the rounds of tutor/ over prompts that people asked, in STATE/runs/ID/tutor.

Its rows to learn are prompts, beside labelled ones in a separate file; the rows that judge it judge its rounds, and
then, as any job's, what they published beside what is in service.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ... import disk
from ...adapters import store
from ...data.rows import Row
from ...errors import FormatError, MismatchError
from ...evaluation.graders.base import read_grader
from ...formats.bundle import Bundle
from ...objectives.base import Objective
from ...objectives.grpo import Grpo
from ...objectives.sft import Sft
from ...options import make_options
from ...training.config import TrainConfig
from ...training.metrics import NAME as METRICS
from ...tutor.files import Round
from ...tutor.options import TutorOptions
from ...tutor.teach import teach
from ..options import Limits

TUTOR = "tutor"  # the origin of such jobs; the name of its options in a job's method, and of its rounds' folder
GRADER = "grader"  # beside the options, JSON; absent: no grader
LABELLED = "labelled.jsonl"  # in the folder of the job: rows whose right answer people gave
START = "start"  # the adapter that was in service when the job was made
KEEP = "keep.jsonl"  # the canary
STEPS = "steps"  # of each round that trained, the lines of its training
ROUNDS = 3  # at most, unless another number is asked for
ANY = 1e9  # of a limit that the daemon does not have: options are finite
Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TutorTask:
    """What a job's method says of its tutor. given: the options of TutorOptions that are named there; grader: as JSON,
    None without.
    """

    given: Mapping[str, Any]
    grader: Mapping[str, Any] | None

    @property
    def options(self) -> TutorOptions:
        return make_options(TutorOptions, {"rounds": ROUNDS, **self.given}).check()

    @property
    def objective(self) -> Objective:
        """By which the gate judges: what answers earn from the grader, where no right one is known."""
        if self.grader is None:
            return Sft()
        return Grpo(grader=json.dumps(self.grader), max_completion_length=self.options.max_tokens)

    def to_method(self) -> dict[str, Any]:
        """The method of its job: rounds learn answers as supervised rows."""
        grader = {GRADER: dict(self.grader)} if self.grader else {}
        return {"type": Sft.method, Sft.method: {"hyperparameters": {}, TUTOR: dict(self.given), **grader}}


def task_of(method: Mapping[str, Any]) -> TutorTask | None:
    """Of a job's method; None where it is no tutor's."""
    part = method[method["type"]]
    return TutorTask(part[TUTOR], part.get(GRADER)) if TUTOR in part else None


def fill(folder: Path, labelled: Iterable[Row], start: Path | None) -> None:
    """Writes what such a job has beside its rows into its folder. Raises DiskError."""
    try:
        (folder / LABELLED).write_text("".join(json.dumps(row) + "\n" for row in labelled), encoding="utf-8")
        if start is not None:
            (folder / START).mkdir()
            _copy_adapter(start, folder / START)
    except OSError as error:
        raise disk.cannot_write(folder, error) from None


def _copy_adapter(source: Path, target: Path) -> None:
    for name in (store.FILE, store.RUN, store.SCHEMA):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


@dataclass(frozen=True)
class Lesson:
    """The rounds of a job. folder: of the job, with its files; prompts, held: those with its rows to learn and to judge
    by. out: the run to make of what the rounds publish. emit: for events.
    """

    folder: Path
    prompts: Path
    held: Path
    out: Path
    emit: Emit

    @property
    def rounds(self) -> Path:
        return self.folder / TUTOR

    @property
    def start(self) -> Path | None:
        return self.folder / START if (self.folder / START).exists() else None

    def learn(self, bundle: Bundle, task: TutorTask, config: TrainConfig, canary: str, limits: Limits,
              allow_python: bool, **means: Any) -> str:
        """Rounds until they stop, and the run of what they published last; why they published nothing, "" where they
        did. Rounds that cannot be continued begin again. means: governor, should_stop and busy, as of `teach`.
        """
        grader = read_grader(task.grader, allow_python=allow_python) if task.grader else None
        options = replace(task.options, canary_rise=_limit(limits.rise, task, "canary_rise"),
                          max_kl=_limit(limits.kl, task, "max_kl"))
        keep = self._keep(canary)
        labelled = self.folder / LABELLED

        def rounds() -> str:
            standing = teach(bundle, self.prompts, self.rounds, labelled=labelled if labelled.stat().st_size else None,
                             held=self.held, grader=grader, start=self.start, keep=keep, options=options,
                             config=config, on_event=self._on_event, **means)
            return standing.stopped

        try:
            stopped = rounds()
        except (MismatchError, FormatError) as error:  # of another edgetune or canary, or damaged
            if not self.rounds.exists():
                raise
            self.emit({"event": "again", "what": error.what})
            shutil.rmtree(self.rounds)
            shutil.rmtree(self.folder / STEPS, ignore_errors=True)
            stopped = rounds()
        return "" if self._publish() else f"the tutor's rounds published nothing: {stopped}"

    def _keep(self, canary: str) -> Path | None:
        if not canary:
            return None
        with disk.replaced(self.folder / KEEP) as beside:
            beside.write_text(json.dumps({"text": canary}) + "\n", encoding="utf-8")
        return self.folder / KEEP

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "tutor" and event["step"] == "train":
            self._keep_steps(event["round"])
        self.emit(event)

    def _keep_steps(self, number: int) -> None:
        """The tutor removes the runs of its rounds."""
        lines = Round(self.rounds, number).trained / METRICS
        try:
            (self.folder / STEPS).mkdir(exist_ok=True)
            if lines.exists():
                with disk.replaced(self.folder / STEPS / f"{number:03}.jsonl") as beside:
                    shutil.copyfile(lines, beside)
        except OSError as error:
            raise disk.cannot_write(self.folder / STEPS, error) from None

    def _publish(self) -> bool:
        """Makes the run of what the rounds published; whether they published anything."""
        record = store.read_run(self.rounds)
        if not (self.rounds / store.FILE).exists() or (self.start is not None and not record.get("published")):
            return False
        shutil.rmtree(self.out, ignore_errors=True)
        with disk.new_folder(self.out) as beside:
            _copy_adapter(self.rounds, beside)
            (beside / METRICS).write_text("".join(self._lines(record.get("published", 0))), encoding="utf-8")
        return True

    def _lines(self, last: int) -> Iterable[str]:
        """Of all trainings up to the round that was published, as those of one, whose steps are counted through."""
        before = 0
        for path in sorted((self.folder / STEPS).glob("*.jsonl")):
            number = int(path.stem)
            if number > last:
                break
            step = before
            for written in path.read_text("utf-8").splitlines():
                line = json.loads(written)
                if "step" in line:
                    line["step"] += before
                    step = max(step, line["step"])
                yield json.dumps({**line, "round": number}) + "\n"
            before = step


def _limit(limit: float | None, task: TutorTask, name: str) -> float:
    """That of the daemon, unless the tutor's options name one."""
    if name in task.given:
        return float(task.given[name])
    return ANY if limit is None else limit
