"""metrics.jsonl: one JSON object a line, appended during the run, truncated to a checkpoint's position on resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..disk import cannot_write, sync

NAME = "metrics.jsonl"
CSV = "metrics.csv"  # this one and the next are written from it, when a run has ended
REPORT = "report.html"
# A line is not synced: the kernel writes the file's last page when it has been dirty for half a minute.
BYTES_PER_DAY = 4096 * 2 * 60 * 24


class MetricsFile:
    """The file of one run. Every method raises DiskError where the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def write(self, event: dict[str, Any]) -> None:
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def position(self) -> int:
        """The file's length in bytes, all of it synced to the disk."""
        try:
            if not self.path.exists():
                return 0
            sync(self.path)
            return self.path.stat().st_size
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def rewind(self, position: int) -> None:
        """Truncates the file to `position`; where it is shorter, removes an incomplete last line."""
        try:
            if not self.path.exists():
                return
            if (size := self.path.stat().st_size) < position:
                position = self.path.read_bytes().rfind(b"\n") + 1
            if size != position:
                os.truncate(self.path, position)
        except OSError as error:
            raise cannot_write(self.path, error) from None
