"""What `edgetune fleet server` and `edgetune fleet node` tell the apps: a file of JSON that the environment names."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SERVER = "EDGETUNE_FLOWER_SERVER"
NODE = "EDGETUNE_FLOWER_NODE"
PROCESS = "server-app.pid"  # in the state of the server: the number of the process that ends rounds
ENDED = "ended.json"  # how it ended


@dataclass(frozen=True)
class ServerSettings:
    """folder: of the rounds, as rounds/places.py has it. aggregate: the words of the command that makes the next
    task, to which the task, the answers, -o and its folder are added, and variables of its environment. every: seconds
    between two looks. devices, wait: of `edgetune fleet lead`. rounds: the last round to end. state: a folder for what
    the server app says of itself.
    """

    folder: str
    aggregate: list[str]
    variables: dict[str, str]
    devices: int
    wait: float
    rounds: int
    every: float
    state: str


@dataclass(frozen=True)
class NodeSettings:
    """train: the words of the command that answers a task, to which the task, `more`, -o and the answer's folder are
    added, and variables of its environment. work: a folder for tasks, checkpoints and the newest answer.
    """

    train: list[str]
    more: list[str]
    variables: dict[str, str]
    work: str


def write_settings(path: Path, settings: ServerSettings | NodeSettings) -> None:
    path.write_text(json.dumps(asdict(settings)), encoding="utf-8")


def server_settings() -> ServerSettings:
    return ServerSettings(**_read(SERVER))


def node_settings() -> NodeSettings:
    return NodeSettings(**_read(NODE))


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(os.environ[name]).read_text(encoding="utf-8"))
    return found
