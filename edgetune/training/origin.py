"""The origin of a run. run.json holds it from the start, so that the folder alone is enough to continue the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ..adapters.store import RUN, read_run
from ..errors import FormatError
from ..persisted import from_json

TENTH = "tenth"  # as an origin's held-out rows: nothing was said


@dataclass(frozen=True)
class RunOrigin:
    """An origin. model, data: paths that can be opened from any folder. held_out: a path, or "tenth" or "none".

    started: ISO 8601. objective: its name and options. policy: the governor's options. `run` fills in these two.
    """

    model: str
    data: str
    held_out: str
    command: list[str] = field(default_factory=list)
    started: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))
    objective: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)


def read_origin(folder: str | Path) -> RunOrigin:
    """Reads the origin of the run in `folder`. Raises FormatError if there is no run, or if it has no origin."""
    folder = Path(folder)
    record = read_run(folder)
    if not record:
        raise FormatError(f"{folder} holds no run: there is no {RUN}", "name the output folder of a training")
    if record.get("origin") is None:
        raise FormatError(f"the run in {folder} does not say which files it was made from",
                          "give them again: edgetune train MODEL DATA -o OUT --resume")
    return from_json(RunOrigin, record["origin"], f"the origin in {folder / RUN}")
