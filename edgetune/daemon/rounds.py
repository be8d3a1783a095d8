"""The daemon that serves the rounds of a fleet, as a device asks it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..fleet.rounds import answer as answers
from ..formats import signature
from .client import Client

PARTS = {"answer": answers.FACTS, "update": answers.UPDATE, "signed": signature.FILE}


class RoundsByHttp:
    """That daemon, by its client. As fleet.carriers.http.Server, whose errors it raises."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def round(self, device: str, known: str) -> tuple[Mapping[str, Any], str] | None:
        return self.client.get_changed(f"/v1/fleet/round/{quote(device)}", known)

    def load(self, number: int, file: str, target: Path, most: int) -> None:
        self.client.download(f"/v1/fleet/rounds/{number}/task/{quote(file)}", target, most)

    def send(self, number: int, device: str, answer: Path) -> None:
        self.client.put_files(f"/v1/fleet/rounds/{number}/answers/{quote(device)}",
                              {part: answer / name for part, name in PARTS.items() if (answer / name).exists()})
