"""A kind of job in one file, which touches nothing else: it learns words that a person whispered, twice as long."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from edgetune.daemon.jobs.jobs import JobData
from edgetune.daemon.jobs.progress import JobProgress
from edgetune.daemon.jobs.table import Job
from edgetune.daemon.jobs.worker import Worker
from edgetune.daemon.kinds.base import JobKind, Starter
from edgetune.daemon.kinds.registry import register
from edgetune.daemon.service import Service

WORDS = ["on", "off", "dim"]
NOTE = "whispered.json"


@register
class ToyJob(JobKind):
    origin = "toy"

    def starters(self, service: Service) -> Sequence[Starter]:
        return [Whispers(service)]

    def progress(self, table: Any, job: str) -> JobProgress:
        return ToyProgress(table, job)

    def work(self, worker: Worker) -> dict[str, Any]:
        found = json.loads((worker.folder / NOTE).read_text())
        worker.emit({"event": "whisper", "words": found})
        worker.config = replace(worker.config, steps=2 * worker.config.steps)
        return super().work(worker)


class ToyProgress(JobProgress):
    def tell(self, event: dict[str, Any]) -> None:
        if event["event"] == "whisper":
            self.facts["phase"] = "whispering"
            self.add("message", f"heard {len(event['words'])} words")
        else:
            super().tell(event)


class Whispers(Starter):
    name = "whispers"
    origin = ToyJob.origin
    material = "whispers"
    doing = "listen"
    needed = 2

    def __init__(self, service: Service) -> None:
        self.jobs = service.jobs
        self.settled: list[str] = []

    def waiting(self) -> int:
        return 3

    def begin(self) -> Job:
        rows = [{"prompt": f"say {word} {i}", "completion": word} for word in WORDS for i in range(4)]
        data = JobData(rows[:9], rows[9:], fill=partial(_fill, words=WORDS))
        return self.jobs.begin(self.origin, data, {"type": "supervised"}, suffix="whispered", metadata={},
                               hyperparameters={"steps": 2, "batch_size": 2, "rank": 2, "threads": 1, "max_length": 64})

    def settle(self, job: Job) -> str:
        self.settled.append(job.id)
        return ""

    def facts(self) -> dict[str, Any]:
        return {"loudness": "low"}


def _fill(folder: Path, words: list[str]) -> None:
    (folder / NOTE).write_text(json.dumps(words))
