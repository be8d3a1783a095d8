"""The contract of a kind of job.

A job has a row in the database, a folder with the rows that it learns (train.jsonl) and those that are held out
(held.jsonl), and a process that works in this folder. Its kind defines the rest: further files in the folder, the work
of the process, lines of the history, and starters that begin such jobs without a client. To add a kind, write a file in
this folder with a subclass of JobKind and decorate it with `register`. `FileJob` is the shortest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...evaluation.acceptance import Given, HeldOut, Population
from ...objectives.base import Objective
from ..jobs.progress import JobProgress
from ..jobs.recipe import objective_of
from ..jobs.worker import RUN, is_done
from .registry import register

if TYPE_CHECKING:
    from ..jobs.table import Job, JobTable
    from ..jobs.worker import Worker
    from ..service import Service
    from ..state.adapters import Adapters, RegisteredAdapter


class JobKind:
    """A kind of job. origin: its name, in rows and for clients. starts: the names of starters that only a daemon with
    certain options has, and these options; a request to /v1/learn has a field for each. trains: whether its jobs make
    an adapter; others evaluate one. population: how its held-out rows are chosen.
    """

    origin: ClassVar[str]
    starts: ClassVar[Mapping[str, str]] = {}
    trains: ClassVar[bool] = True
    population: ClassVar[type[Population]] = Given

    # ---- in the daemon ------------------------------------------------------------------------------------------

    def starters(self, service: Service) -> Sequence[Starter]:  # noqa: ARG002 (of those that have some)
        """Returns the starters of such jobs in this daemon, in order of precedence."""
        return ()

    def progress(self, table: JobTable, job: str) -> JobProgress:
        """Returns an object that makes a job's history of the events of its process."""
        return JobProgress(table, job)

    def kept(self, adapters: Adapters, job: Job) -> RegisteredAdapter | None:
        """Returns the adapter of a job whose verdict is kept already."""
        return adapters.of_job(job.id)

    def keep(self, adapters: Adapters, job: Job, run: Path, verdict: Mapping[str, Any]) -> RegisteredAdapter:
        """Keeps the adapter of a finished run with its verdict. Raises BudgetError where memory has no room for it."""
        return adapters.add(job.id, run, job.suffix, verdict)

    def drop(self, adapters: Adapters, made: RegisteredAdapter) -> None:
        """Undoes `keep`, so that the adapter can be evaluated again."""
        adapters.delete(made.id)

    def leaves_adapter(self, run: Path) -> bool:
        """Returns whether a job that has done its work leaves an adapter to keep. run: the folder of its training."""
        return not self.trains or is_done(run)

    def activates(self, job: Job) -> bool:  # noqa: ARG002 (a kind may leave it to a person)
        """Returns whether an adapter that passed the gate becomes active."""
        return True

    # ---- in either ----------------------------------------------------------------------------------------------

    def has_begun(self, folder: Path) -> bool:
        """Returns whether a process has left work in the folder of a job, which the next one continues."""
        return (folder / RUN).exists()

    # ---- in the process of a job --------------------------------------------------------------------------------

    def objective(self, folder: Path, method: Mapping[str, Any]) -> Objective:  # noqa: ARG002
        """Returns the objective by which rows are learned, and held-out rows are evaluated. Raises UsageError."""
        return objective_of(method)[0]

    def work(self, worker: Worker) -> dict[str, Any]:
        """Does the job, or continues it. Returns the verdict as JSON: `passed`, `reason`, and those of the gate, where
        the worker evaluated an adapter; a job that makes no adapter has the first two.
        """
        worker.train()
        return worker.evaluate()


@register
class FileJob(JobKind):
    """Jobs over rows that a client uploaded, or that the calling program has, by the method that the request names."""

    origin = "api"
    population = HeldOut


class Starter(ABC):
    """A starter begins jobs of a kind, by itself when enough material waits, or when a person requests it.

    name: by which a person begins one. origin: of its jobs. material: a plural noun for what it waits for. doing: the
    work of its jobs, after "begins to". needed: the amount that must wait before it begins by itself; 0: never.
    """

    name: str
    origin: str
    material: str
    doing: str
    needed: int

    @abstractmethod
    def waiting(self) -> int:
        """Returns the amount of material that no job has taken."""

    @abstractmethod
    def begin(self) -> Job:
        """Begins a job. Raises UsageError where there is too little, and errors of Jobs."""

    def lacks(self, missing: int) -> str:
        """Returns the missing amount in words."""
        return f"{missing} more {self.material}"

    def unsettled(self) -> Sequence[str]:
        """Returns jobs that have taken something that is not settled yet."""
        return ()

    def settle(self, job: Job) -> str:  # noqa: ARG002
        """Settles a job of any kind that ended. Returns why none may begin before more material arrives, or ""."""
        return ""

    def facts(self) -> dict[str, Any]:
        """Returns its facts for clients, in addition to its state."""
        return {}
