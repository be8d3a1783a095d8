"""A real daemon on a free port: in this process, with its service, or in a process that can be measured."""

from __future__ import annotations

import json
import queue
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from services import short_canary

from edgetune.daemon.jobs.process import JobProcess, WorkerProcess
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.server import run
from edgetune.daemon.service import Service
from edgetune.machine.policy import Policy
from edgetune.training.config import TrainConfig

if TYPE_CHECKING:
    import openai

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "the light on"}], "max_tokens": 2}
DESCRIPTORS = 1024  # what most systems give a process
MIB = 2**20
PATIENCE = 60  # seconds; nothing here takes nearly so long


@dataclass
class Daemon:
    url: str  # or unix:PATH
    service: Service
    thread: threading.Thread


@contextmanager
def daemon(model: Path, state: Path, train: TrainConfig | None = None, policy: Policy | None = None,
           start_process: Callable[[], JobProcess] = WorkerProcess, **options: object) -> Iterator[Daemon]:
    """It has answered before this yields, and has stopped when it is left."""
    if "canary" not in options:
        options["canary"] = str(short_canary(state.parent))
    config = DaemonConfig(**{"state": str(state), "port": 0, "threads": 1, "max_kl": "off", "canary_rise": "off",
                             **options})
    service = Service(model, config, policy, train, start_process)
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


@dataclass
class Process:
    url: str
    pid: int
    log: Path
    process: subprocess.Popen[str]

    @property
    def place(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def memory(self, name: str) -> int:
        """Bytes of VmRSS or VmHWM."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


@contextmanager
def process(model: Path, folder: Path, *options: object) -> Iterator[Process]:
    """A daemon of its own, with so many descriptors as a shell gives it."""
    command = [sys.executable, "-m", "edgetune", "serve", model, "--state", folder / "state", "--threads", "1",
               "--port", "0", "--json", *options]
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    log = folder / "log"
    with log.open("w") as errors:
        started = subprocess.Popen(
            [str(word) for word in command], cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        resource.prlimit(started.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, limit[1]))  # before it listens
        assert started.stdout
        line = started.stdout.readline()
        assert line, log.read_text()
        yield Process(json.loads(line)["url"], started.pid, log, started)
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


def openai_client(url: str, key: str = "none") -> openai.OpenAI:
    """OpenAI's own client, of the daemon at `url`. It is imported late: programs that use this module do without."""
    import openai
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)


def health_seconds(url: str) -> float:
    """Until a stranger who comes now is answered."""
    start = time.monotonic()
    assert httpx.get(url + "/healthz", timeout=PATIENCE).status_code == 200
    return time.monotonic() - start
