"""A service that learns from feedback on a tiny model, for tests: opened, and given corrections."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from services import same_holdout

from edgetune import TrainConfig
from edgetune.daemon.jobs.process import JobProcess, WorkerProcess
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.machine.policy import Policy

TRAIN = TrainConfig(lr=2e-2, epochs=2.0, batch_size=4, max_length=96, threads=1, anchors=0)


def opened(model: Path, folder: Path, train: TrainConfig = TRAIN,
           start_process: Callable[[], JobProcess] = WorkerProcess, **options: Any) -> Service:
    """A tiny model has unlearned nothing if it still says "on"."""
    canary = folder / "canary.txt"
    canary.write_text("turn the light on, turn the light on")
    same_holdout(folder / "state")
    config = DaemonConfig(state=str(folder / "state"), canary=str(canary), context=512, parallel=2, threads=1,
                          max_kl="off")
    return Service(model, replace(config, **options), Policy(govern=False), train, start_process)


def give(service: Service, numbers: range, answer: str = "on") -> None:
    for i in numbers:
        asked = [{"role": "user", "content": f"turn the light {i}"}]
        service.feedback.add(messages=asked, answer="", correction=answer)
