"""The ServerApp: it ends the rounds of a folder, and says in files whether it runs and how it ended."""

from __future__ import annotations

import json
import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from .messages import arrays_of
from .parcel import TASK_FILES, pack
from .settings import ENDED, PROCESS, server_settings
from .strategy import FolderStrategy


def run(grid: Grid, _context: Context) -> None:
    settings = server_settings()
    state = Path(settings.state)
    (state / PROCESS).write_text(str(os.getpid()))
    error = ""
    try:
        strategy = FolderStrategy(settings)
        task = pack(strategy.task(strategy.newest()), TASK_FILES)
        strategy.start(grid, arrays_of(task), settings.rounds, settings.wait)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
        raise
    finally:
        beside = state / f"{ENDED}.tmp"
        beside.write_text(json.dumps({"error": error}))
        beside.replace(state / ENDED)


app = ServerApp()
app.main()(run)
