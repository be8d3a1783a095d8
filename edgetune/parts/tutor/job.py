"""The tutor's jobs (--learn tutor): rounds over prompts that people asked, in STATE/runs/ID/tutor.

A job begins from the active adapter. It answers all prompts that are kept. Right answers of people are its labelled
rows, which it does not take. Feedback that is held out is divided by digests, and so are one in five prompts where a
grader can score answers: one half selects which rounds are published, the other half decides in the gate.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ... import disk
from ...adapters import store
from ...daemon.jobs.jobs import JobData
from ...daemon.jobs.progress import JobProgress
from ...daemon.jobs.recipe import HELD, SELECTING, TRAIN
from ...daemon.jobs.table import Job, JobTable
from ...daemon.kinds.base import JobKind, Starter
from ...daemon.kinds.feedback import FeedbackJob
from ...daemon.kinds.registry import register
from ...daemon.learning.curriculum import JobRows
from ...daemon.learning.file_rows import files_of_active
from ...daemon.state.holdout import EDGE, MOST
from ...data import prompts as asking
from ...data import rows as supervised_rows
from ...data.dataset import Dataset, load_rows
from ...data.rows import Row, RowParser
from ...errors import DataError, FormatError, MismatchError, UsageError
from ...evaluation.acceptance import Split
from ...evaluation.graders.base import Grader, read_grader
from ...objectives.base import Objective
from ...objectives.sft import Sft
from ...training.config import TrainConfig
from ...training.metrics import NAME as METRICS
from .prompts import prompts_of, take
from .rounds.folder import BEGUN, published_rounds
from .rounds.teach import TutorFiles, teach
from .task import TASK, TutorTask, own, task_of, tutor_task

if TYPE_CHECKING:
    from ...daemon.jobs.worker import Worker
    from ...daemon.service import Service

PROMPTS = "prompts"  # the name by which a person begins one
SUFFIX = "tutored"  # of the adapters
LABELLED = "labelled.jsonl"  # rows whose right answer people gave
START = "start"  # the adapter that was active when the job was made
KEEP = "keep.jsonl"  # the canary
ROUNDS = "tutor"  # the rounds
ANY = 1e9  # the value of a limit that the daemon does not have: options are finite
LEFT_OUT = ("steps", "eval_every", "patience")  # options of training that rounds do not have


@register
class TutorJob(JobKind):
    """Answers, evaluates and learns prompts, round by round."""

    origin = "tutor"
    starts: ClassVar = {PROMPTS: "start the daemon with --learn tutor and --keep-prompts 1000"}

    def starters(self, service: Service) -> Sequence[Starter]:
        config = service.config
        task = tutor_task(config)
        if task and not service.served.writes:
            raise UsageError(f"learn is {config.learn}, and {service.name} is an encoder, which cannot answer prompts "
                             "that it has not learned", "choose idle or nightly, or a model that writes text")
        return [PromptStarter(service, task)] if task else []

    def progress(self, table: JobTable, job: str) -> JobProgress:
        return RoundsProgress(table, job)

    def has_begun(self, folder: Path) -> bool:
        return super().has_begun(folder) or (folder / ROUNDS / BEGUN).exists()

    def objective(self, folder: Path, method: Mapping[str, Any]) -> Objective:
        return task_of(folder, method).objective

    def work(self, worker: Worker) -> dict[str, Any]:
        """Does a job. If its rounds published nothing, it makes no adapter."""
        if not worker.is_trained and (why := _Rounds(worker).work()):
            return {"passed": False, "reason": why}
        return worker.evaluate()


# ---- in the daemon ---------------------------------------------------------------------------------------------------


class PromptStarter(Starter):
    """The starter of jobs over all prompts that are kept, when enough of them are new."""

    name = PROMPTS
    origin = TutorJob.origin
    material = "prompts"
    doing = "ask prompts"

    def __init__(self, service: Service, task: TutorTask) -> None:
        self.task = task
        self.needed = own(service.config).tutor_prompts
        self.prompts = prompts_of(service)
        self.feedback = service.feedback
        self.jobs = service.jobs
        self.tokenizer = service.served.tokenizer

    def waiting(self) -> int:
        return self.prompts.waiting()

    def lacks(self, missing: int) -> str:
        return f"{missing} more prompt{'' if missing == 1 else 's'}"

    def facts(self) -> dict[str, Any]:
        """Returns the counts of prompts, and the rounds of the latest job."""
        return {"prompts": self.prompts.counts(), "rounds": self.jobs.table.latest_rounds(self.origin)}

    def settle(self, job: Job) -> str:
        """Lets all prompts wait again after a feedback job: it began from the base, which learned from none of them."""
        if job.origin == FeedbackJob.origin and job.verdict and job.verdict["passed"]:
            self.prompts.renew()
        return ""

    def begin(self) -> Job:
        found = [prompt for prompt in reversed(self.prompts.list(limit=max(self.prompts.most, 1)))
                 if self._fits(prompt.row)]
        said = self.feedback.answered_rows()
        labelled = [row for row in JobRows(self.feedback, said.new) if self._is_learnable(row)]
        answered = [(stored, row) for row, stored in zip(JobRows(self.feedback, said.held), said.held, strict=True)
                    if self._is_learnable(row)]
        held = {stored.question: row for stored, row in answered}
        sided = {stored.question for stored in (*said.new, *said.held)}  # learned or held out, as their answers are
        holdout = self.feedback.holdout
        scored = {prompt.question: prompt.row for prompt in found  # held out, where a grader scores answers
                  if self.task.grader and prompt.question not in sided and holdout.rank(prompt.question) < EDGE}
        names = holdout.lowest(scored, MOST - len(held))
        held |= {name: row for name, row in scored.items() if name in names}
        apart = scored.keys() | {stored.question for stored in said.held}
        rows = [prompt.row for prompt in found if prompt.question not in apart]
        self._check(rows, held)
        split = Split.of(held)
        deciding = [row for name, row in held.items() if name in split.deciding]
        selecting = [row for name, row in held.items() if name in split.selecting]
        earlier = [stored.job or "" for stored, _ in answered
                   if stored in said.established and stored.question in split.deciding]
        serving = self.jobs.adapters.serving
        active = self.jobs.adapters.path(serving) if serving else None
        start = None if active and store.is_compiled(active) else active  # nothing is trained in a compiled prompt
        counts = {"prompts": str(len(rows)), "labelled": str(len(labelled)), "held": str(len(deciding)),
                  "selecting": str(len(selecting))}
        plain = TrainConfig()
        options = {**{name: getattr(plain, name) for name in LEFT_OUT}, **store.recorded_size(start)}
        system = "" if self.jobs.train.prompt else self.jobs.train.system or store.read_system(active)
        fill = partial(_fill, task=self.task, labelled=labelled, selecting=selecting, start=start)
        data = JobData(rows, deciding, earlier, fill=fill,
                       take=lambda db, job: take(db, [prompt.id for prompt in found], job), system=system)
        return self.jobs.begin(self.origin, data, {"type": Sft.method}, suffix=SUFFIX, metadata=counts,
                               hyperparameters=options, files=files_of_active(self.jobs))

    def _fits(self, row: Row) -> bool:
        """Returns whether this model's template takes a prompt, and its answer can be learned whole."""
        longest = self.jobs.train.row_limit - self.task.options.max_tokens
        data = self._tokenized(row, asking)
        return data is not None and bool(data.examples[0].tokens.size <= longest)

    def _is_learnable(self, row: Row) -> bool:
        data = self._tokenized(row, supervised_rows)
        return data is not None and not data.truncated

    def _tokenized(self, row: Row, parser: RowParser) -> Dataset | None:
        """Returns a tokenized row; None for a row that this model's template does not take."""
        train = self.jobs.train
        try:
            return load_rows([row], self.tokenizer, max_length=train.row_limit, system=train.instruction,
                             parser=parser)
        except DataError:
            return None

    def _check(self, rows: Sequence[Row], held: Collection[str]) -> None:
        """Raises UsageError where there are too few rows to learn or to hold out."""
        if not rows:
            raise UsageError("no prompt is kept that the tutor could ask", "ask some, or raise max-length")
        if not held:
            missing = "" if self.task.grader else ", and there is no grader"
            raise UsageError(f"nothing can evaluate what the tutor's rounds learn: no answer is held out{missing}",
                             "correct some answers, or name a grader with --learn-grader FILE")
        if len(held) < 2:
            raise UsageError("too little is held out for the tutor, 1 question: one must select rounds, another decide",
                             "correct more answers")


def _fill(folder: Path, task: TutorTask, labelled: Iterable[Row], selecting: Iterable[Row], start: Path | None) -> None:
    """Writes the further files of such a job. Raises OSError."""
    (folder / TASK).write_text(json.dumps({"given": dict(task.given), "grader": task.grader}))
    for name, rows in ((LABELLED, labelled), (SELECTING, selecting)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if start is not None:
        (folder / START).mkdir()
        _copy_adapter(start, folder / START)


def _copy_adapter(source: Path, target: Path) -> None:
    for name in (store.FILE, store.RUN, store.SCHEMA):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


# ---- in the process of a job -----------------------------------------------------------------------------------------


class _Rounds:
    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.task = task_of(worker.folder, worker.method)
        self.folder = worker.folder / ROUNDS
        if self.task.grader:
            worker.make_room_for_graders(self._grader().process_bytes)

    def work(self) -> str:
        """Makes rounds until they stop, and the run of the adapter that they published last. Returns why they published
        nothing, or "". Rounds that cannot be continued begin again.
        """
        if self.folder.exists() and not (self.folder / BEGUN).exists():
            shutil.rmtree(self.folder)  # a kill came before anything was in it
        try:
            stopped = self.worker.room.fitting(self.worker.config, self._teach)
        except (MismatchError, FormatError) as error:  # of another edgetune or canary, or damaged
            if not self.folder.exists():
                raise
            self.worker.emit({"event": "again", "what": error.what})
            shutil.rmtree(self.folder)
            stopped = self.worker.room.fitting(self.worker.config, self._teach)
        return "" if self._publish() else f"the tutor's rounds published nothing: {stopped}"

    def _grader(self) -> Grader:
        assert self.task.grader
        return read_grader(self.task.grader, allow_python=self.worker.python.graders)

    def _teach(self, config: TrainConfig, _shortens: bool) -> str:
        worker = self.worker
        folder = worker.folder
        task = self.task
        labelled = folder / LABELLED
        start = folder / START
        grader = self._grader() if task.grader else None
        limits = {"canary_rise": worker.limits.rise, "max_kl": worker.limits.kl}
        given = {**{name: ANY if limit is None else limit for name, limit in limits.items()}, **task.given}
        options = replace(task, given=given).options
        keep = folder / KEEP if worker.canary else None
        if keep:
            with disk.replaced(keep) as beside:
                beside.write_text(json.dumps({"text": worker.canary}) + "\n", encoding="utf-8")
        files = TutorFiles(folder / TRAIN, labelled if labelled.stat().st_size else None,
                      next(path for path in (folder / SELECTING, folder / HELD) if path.exists()), keep)
        with worker.saving() as callbacks:
            return teach(worker.bundle, files, self.folder, grader=grader, start=start if start.exists() else None,
                         options=options, config=config, callbacks=callbacks).stopped

    def _publish(self) -> bool:
        """Makes the run of the adapter that the rounds published last; returns whether they published any."""
        published = [adapter for round, adapter in published_rounds(self.folder) if round.number]
        if not published:
            return False
        shutil.rmtree(self.worker.out, ignore_errors=True)
        with disk.new_folder(self.worker.out) as beside:
            _copy_adapter(self.folder, beside)
            shutil.copyfile(published[-1] / METRICS, beside / METRICS)
        return True


# ---- its history -----------------------------------------------------------------------------------------------------


def round_of(steps: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a round, by the facts of its steps. prompts: answered. right: the share of their answers that pass the
    grader or agree. rows: learned. held_out, held_out_before: the share of right answers to held-out questions, or
    their mean reward, with its adapter and with the one before. Then questions, published, reason.
    """
    chosen = steps["choose"]
    gate = steps.get("gate", {})
    return {"round": chosen["round"], "prompts": steps["draw"]["prompts"], "right": chosen["rate"],
            "rows": steps.get("train", {}).get("rows", 0), "held_out": gate.get("held_out"),
            "held_out_before": gate.get("held_out_before"), "questions": gate.get("questions", 0),
            "published": bool(gate.get("passed")), "reason": gate.get("reason") or chosen["stop"]}


class RoundsProgress(JobProgress):
    """The progress of a job and of its rounds: the result of each is kept with the job, and reported once."""

    def __init__(self, table: JobTable, job: str) -> None:
        super().__init__(table, job)
        self._rounds = table.rounds(job)
        self._steps: dict[str, dict[str, Any]] = {}  # of this round, the facts of each

    def tell(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "round":
            self._steps = {}
            self.facts = {"phase": "tutor", "round": event["round"], "rounds": event["rounds"], "says":
                          f"round {event['round']} of {event['rounds']}: prompts are answered and compared"}
        elif kind == "tutor":  # a step is done; after a stop those that were done come again
            self._steps[event["step"]] = event
            self.facts = {name: self.facts[name] for name in ("round", "rounds", "says") if name in self.facts}
            self.facts["phase"] = "tutor"
            if event["step"] == "gate" or event.get("stop"):
                self._end_round()
        elif kind == "end":
            self.add("message", f"the tutor stops: {event['stopped']}")
        else:
            if kind == "again":
                self._rounds = []
            super().tell(event)

    def _end_round(self) -> None:
        found = round_of(self._steps)
        if found in self._rounds:
            return
        self._rounds = [*(one for one in self._rounds if one["round"] != found["round"]), found]
        self.table.set_rounds(self.job, self._rounds)
        said = "published" if found["published"] else "not published"
        self.add("message", f"round {found['round']} is {said}: {found['reason']}", found)
