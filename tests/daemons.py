"""A real daemon in this process, on a port that is free: its address, and its service."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.server import run
from edgetune.daemon.service import Service
from edgetune.training.config import TrainConfig

PATIENCE = 60  # seconds; nothing here takes nearly so long


@dataclass
class Daemon:
    url: str  # or unix:PATH
    service: Service
    thread: threading.Thread


@contextmanager
def daemon(model: Path, state: Path, train: TrainConfig | None = None, **options: object) -> Iterator[Daemon]:
    """It has answered before this yields, and has stopped when it is left."""
    config = DaemonConfig(**{"state": str(state), "port": 0, "threads": 1, **options})
    service = Service(model, config, train=train)
    ready: queue.Queue[str | BaseException] = queue.Queue()

    def serve() -> None:
        try:
            run(service, on_ready=ready.put)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=serve, name="daemon", daemon=True)
    thread.start()
    try:
        said = ready.get(timeout=PATIENCE)
        if isinstance(said, BaseException):
            raise said
        yield Daemon(said, service, thread)
    finally:
        service.stopping.set()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the daemon does not stop"
