"""The contract of a kind of job.

A job has a row in the database, a folder with the rows that it learns (train.jsonl) and those that are held out
(held.jsonl), and a process that works in this folder. Its kind says what is special about it: what else is in the
folder, how the process works, what the history tells, and what begins such jobs without a client. To add a kind, write
a file in this folder with a subclass of JobKind and decorate it with `register`. `file.py` is the shortest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...objectives.base import Objective
from ..jobs.progress import JobProgress
from ..jobs.recipe import objective_of
from ..jobs.worker import RUN
from ..options import DaemonConfig

if TYPE_CHECKING:
    from ..jobs.table import Job, JobTable
    from ..jobs.worker import Worker
    from ..service import Service


class JobKind:
    """origin: the name of the kind, in rows and for clients. starts: the names of starters that a daemon has with
    some options alone, and these.
    """

    origin: ClassVar[str]
    starts: ClassVar[Mapping[str, str]] = {}

    # ---- in the daemon ------------------------------------------------------------------------------------------

    def check(self, config: DaemonConfig) -> None:
        """Raises UsageError for options of a daemon that are wrong."""

    def starters(self, service: Service) -> Sequence[Starter]:  # noqa: ARG002 (of those that have some)
        """What begins such jobs in this daemon, in order of precedence."""
        return ()

    def progress(self, table: JobTable, job: str) -> JobProgress:
        """What makes the history of a job of the events of its process."""
        return JobProgress(table, job)

    # ---- in either ----------------------------------------------------------------------------------------------

    def has_begun(self, folder: Path) -> bool:
        """Whether a process has left work in the folder of a job, which the next one continues."""
        return (folder / RUN).exists()

    # ---- in the process of a job --------------------------------------------------------------------------------

    def objective(self, folder: Path, method: Mapping[str, Any]) -> Objective:  # noqa: ARG002
        """By which rows are learned, and held-out rows are evaluated. Raises UsageError."""
        return objective_of(method)[0]

    def work(self, worker: Worker) -> dict[str, Any]:
        """Do the job, or continue it. The verdict as JSON: `passed`, `reason`, and those of the gate, where the worker
        evaluated an adapter; a job that makes no adapter has the first two.
        """
        if not worker.is_trained:
            worker.train()
        return worker.evaluate()


class Starter(ABC):
    """What begins jobs of a kind, by itself when enough is there, or when a person says so.

    name: by which a person begins one. origin: of its jobs. material: what it waits for, in the plural. doing: what its
    jobs do, after "begins to". needed: how much must wait before it begins by itself; 0: it never does.
    """

    name: str
    origin: str
    material: str
    doing: str
    needed: int

    @abstractmethod
    def waiting(self) -> int:
        """How much is there that no job has taken."""

    @abstractmethod
    def begin(self) -> Job:
        """Raises UsageError where there is too little, and errors of Jobs."""

    def lacks(self, missing: int) -> str:
        """So much more is needed, in words."""
        return f"{missing} more {self.material}"

    def unsettled(self) -> Sequence[str]:
        """Jobs that have taken something that is not settled yet."""
        return ()

    def settle(self, job: Job) -> str:  # noqa: ARG002
        """A job ended, of whatever kind. Returns why what waits must not be tried again by itself before there is more;
        "" where it may.
        """
        return ""

    def facts(self) -> dict[str, Any]:
        """What is shown of it, beside its state."""
        return {}
