"""Feedback jobs: they learn right and wrong answers, in the order of curriculum.py, from the base."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...data.around import Instruction
from ...data.dataset import load_rows
from ...errors import DataError, Interrupted, UsageError
from ...serving.served import Served
from ...training.anchored import rows_per_anchor
from ...training.length import batch_of, peak_rate, reading_limit
from ..jobs.decide import LEAST_DRAWN
from ..jobs.jobs import JobData, Jobs
from ..jobs.table import Job
from ..learning.curriculum import JobRows, curriculum, least_rows, passes_over
from ..learning.feedback import Feedback, StoredRow, TrainingRows, assign
from ..learning.file_rows import FileRow, FileRows, rows_of_active
from ..learning.items import FeedbackItem
from ..learning.method import LearnMethod
from ..learning.row_kinds import LABELLED, PAIRS
from ..learning.traffic import DrawnTraffic
from ..options import DaemonConfig
from ..state.holdout import MOST, SHARE
from .base import JobKind, Starter
from .registry import register

if TYPE_CHECKING:
    from ..service import Service

log = logging.getLogger("edgetune.daemon")
NEW = "feedback"  # the name by which a person begins a job over new feedback
ALL = "all"  # and one over all learned feedback
RETRAINS = "anew"  # in the metadata of jobs over all that was learned
SUFFIX = "learned"  # of the adapters
WAITS = ("waits", "unfinished", "again")  # in a verdict: nothing speaks against its rows; the last two of 0.1.0


@register
class FeedbackJob(JobKind):
    """Jobs that a daemon with --learn begins."""

    origin = "learn"

    def starters(self, service: Service) -> Sequence[Starter]:
        common = (service.feedback, service.traffic, service.method, service.jobs, service.config, service.served,
                  service.stopping)
        return NewFeedback(*common), AllFeedback(*common)


@dataclass
class NewFeedback(Starter):
    """The starter of jobs over all new feedback, mixed with earlier feedback. served: says which rows fit the model.
    stopping: set when the daemon stops, which does not wait until a job has begun.
    """

    feedback: Feedback
    traffic: DrawnTraffic
    method: LearnMethod
    jobs: Jobs
    config: DaemonConfig
    served: Served
    stopping: threading.Event
    learnable: set[str] = field(default_factory=set)  # items that were found to fit

    name = NEW
    origin = FeedbackJob.origin
    material = "feedback"
    doing = "learn"

    @property
    def needed(self) -> int:  # type: ignore[override]
        return self.config.learn_rows

    def waiting(self) -> int:
        return self.feedback.waiting()

    def facts(self) -> dict[str, Any]:
        """Returns its facts; pairs: whether the method needs a better and a worse answer; unused: a sentence on
        feedback that it cannot learn from, or "".
        """
        return {"method": self.method.objective.name, "pairs": self.method.kind is PAIRS, "new_rows": self.waiting(),
                "unused": self.method.unused(self.feedback.unusable())}

    def lacks(self, missing: int) -> str:
        return f"{missing} more {'piece' if missing == 1 else 'pieces'} of feedback"

    def begin(self) -> Job:
        file = self._file_rows()
        rows = self._chosen(lambda: self.feedback.training_rows(MOST - len(file.held)))
        if not rows.taken:
            raise UsageError("there is no new feedback to learn", "correct some answers")
        if not rows.new:
            raise UsageError(f"all new feedback, on {_questions(len(rows.fresh))}, is held out",
                             "correct answers to other questions")
        if not rows.held and len(self.traffic.rows(self.method.kind)) < LEAST_DRAWN:
            raise UsageError(f"there is feedback on {_questions(len(rows.new))}, and none of it is held out",
                             f"correct answers to more questions: one of each {SHARE} is held out")
        return self._create(rows, file)

    def unsettled(self) -> Sequence[str]:
        return self.feedback.unsettled()

    def settle(self, job: Job) -> str:
        """Settles its rows: learned, set aside, or new again, to be learned together with the next ones."""
        if job.origin != self.origin or RETRAINS in job.metadata:
            return ""
        verdict = job.verdict or {"passed": False}
        if job.status != "succeeded":
            why = job.error["message"] if job.error else "it was cancelled"
            self.feedback.settle(job.id, "new")
        elif verdict["passed"] or not any(verdict.get(name) for name in WAITS):
            self.feedback.settle(job.id, "used" if verdict["passed"] else "aside")
            return ""
        else:
            why = verdict["reason"]
            self.feedback.learn_again(job.id)
        return f"{job.id} was not activated: {why}"

    def _file_rows(self) -> FileRows:
        return rows_of_active(self.jobs, self.method.kind.parser, self.feedback.questions(), self._system)

    def _create(self, rows: TrainingRows, file: FileRows) -> Job:
        """Creates a job. Its anchors are those of a training whose length the data decides: with right answers, unless
        the options say otherwise. Batch and learning rate are those of a training on as many different rows.
        """
        kind = self.method.kind
        earlier: list[StoredRow | FileRow] = [*file.learned, *rows.earlier]
        learned, options = self._lesson([*rows.new], earlier)
        drawn = self.traffic.rows(kind)
        apart = self.traffic.names()  # they decide, so they must choose no checkpoint
        given = [row for row in rows.fresh if row.question not in apart]
        held: list[StoredRow | FileRow] = [*file.held, *rows.established, *given]
        counts = {"new": str(len(rows.new)), "earlier": str(len(rows.earlier)), "held": str(len(held)),
                  "drawn": str(len(drawn)),
                  **({"file": str(len(file.learned))} if file.learned else {}),
                  **({} if rows.taken else {RETRAINS: "yes"})}
        is_measured = self.method.imitates and not file.held  # a file may hold out rows that training does not read
        data = JobData(JobRows(self.feedback, learned, kind.learned, self.method.imitates),
                       JobRows(self.feedback, held, lambda item: [kind.for_gate(item)]),
                       [file.name] * len(file.held) + [*rows.rounds],
                       JobRows(self.feedback, [row for row in rows.new if row.has_answer]),
                       () if is_measured else JobRows(self.feedback, [*rows.established, *given], kind.learned), drawn,
                       take=lambda db, job: assign(db, rows.taken, job),
                       system=None if kind is LABELLED else self._system)
        return self.jobs.begin(self.origin, data, self.method.asked, suffix=SUFFIX, metadata=counts,
                               hyperparameters=options, files=file.ids, note=file.note)

    def _lesson(self, new: list[StoredRow | FileRow],
                earlier: list[StoredRow | FileRow]) -> tuple[list[StoredRow | FileRow], dict[str, Any]]:
        """Returns the rows of a job in their order, and the options of its training. Labels are learned from all rows
        alike, since a head knows those alone that it has just seen.
        """
        train = self.method.train(self.jobs.train)
        different = len(new) + len(earlier)
        if self.method.kind is LABELLED:
            return [*earlier, *new], {**self.method.training}
        learned = curriculum(new, earlier, passes_over(len(new), train), self.config.replay, train.seed,
                             least_rows(different, train), least_rows(len(earlier), train))
        anchors = rows_per_anchor(replace(train, epochs="auto", steps=0), self.method.objective)
        return learned, {"epochs": 1.0, "steps": 0, "shuffle": False, "anchors": anchors,
                         "batch_size": batch_of(train, different), "lr": peak_rate(train, different)}

    @property
    def _system(self) -> str:
        """The system message that rows without one are answered with now, where the options name no other, or a prompt.
        """
        if self.jobs.train.prompt:
            return ""
        return self.jobs.train.system or self.served.system_of(self.jobs.adapters.serving)

    def _chosen(self, choose: Callable[[], TrainingRows]) -> TrainingRows:
        """Returns the rows that a job learns and is evaluated by. Those that the template or context does not accept
        are set aside, and others take their places: one would fail every job.
        """
        system = self.jobs.train.instruction or self._system or None
        while True:
            rows = choose()
            used = {row.id for row in (*rows.new, *rows.held)}
            unfit = [item for item in self.feedback.items(used - self.learnable)
                     if not self._is_learnable(item, system)]
            if not unfit:
                self.learnable = used
                return rows

    def _is_learnable(self, item: FeedbackItem, system: Instruction) -> bool:
        if self.stopping.is_set():
            raise Interrupted("the daemon stops", "ask again when it is back")
        kind = self.method.kind
        longest = reading_limit(self.jobs.train.max_length, self.served.context)
        try:
            rows = kind.learned(item)
            if not rows and not item.held:  # a held-out one may be evaluated in another shape
                raise DataError("the grader does not find what it needs in it", "")
            if rows:
                load_rows(rows, self.served.tokenizer, max_length=longest, system=system, parser=kind.parser)
        except DataError as error:
            log.warning("feedback %s cannot be learned: %s", item.id, error)
            self.feedback.set_aside(item.id)
            return False
        self.learnable.add(item.id)
        return True


class AllFeedback(NewFeedback):
    """The starter of jobs over all learned feedback, as if it were new, from the base; they take nothing. It begins by
    itself after --compact-every jobs whose adapters were activated.
    """

    name = ALL
    material = "feedback jobs that are activated"
    doing = "learn all feedback again"

    @property
    def needed(self) -> int:  # type: ignore[override]
        return self.config.compact_every

    def waiting(self) -> int:
        return self.jobs.table.activated_since(self.origin, RETRAINS)

    def begin(self) -> Job:
        file = self._file_rows()
        rows = self._chosen(lambda: self.feedback.learned_rows(MOST - len(file.held)))
        if not (rows.new and rows.held):
            raise UsageError("no feedback was learned yet", "learn what is new")
        return self._create(rows, file)

    def unsettled(self) -> Sequence[str]:
        return ()

    def settle(self, job: Job) -> str:  # noqa: ARG002
        return ""


def _questions(count: int) -> str:
    return "1 question" if count == 1 else f"{count} questions"
