"""A client's pattern that backtracks cannot occupy the process that trains for ever."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from services import SMALL, open_service, upload

from edgetune.daemon.jobs.process import WorkerProcess

ROWS = [{"prompt": f"turn on lamp {i}"} for i in range(8)]
WORKER = """from edgetune.daemon.jobs import worker
worker.GRADER_SECONDS = 0.2
main = worker.main
"""


def test_a_job_whose_grader_hangs_fails_and_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hasty_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    grader = {"type": "regex", "name": "backtracks", "input": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab",
              "pattern": "(a+)+$"}
    method = {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": {
        **SMALL, "num_generations": 4, "max_completion_length": 4}}}
    with open_service(tmp_path, start_process=partial(WorkerProcess, "hasty_worker")) as service:
        job = service.jobs.wait(service.jobs.create("tiny", upload(service, ROWS), method=method).id, 60)
    assert job.status == "failed"
    assert job.error
    assert "backtracks" in job.error["message"]
