"""Reward functions that a job names: the daemon checks a name, the process that trains imports it from one folder."""

import json
import os
from functools import partial

import pytest
from services import SMALL, open_service, until, upload

from edgetune.daemon.jobs.process import WorkerProcess
from edgetune.daemon.learning.method import learn_method
from edgetune.daemon.options import DaemonConfig
from edgetune.errors import UsageError

ROWS = [{"prompt": f"turn on lamp {i}"} for i in range(12)]
CODE = """import os
from pathlib import Path
from beside import WORTH
Path(__file__).with_suffix(".imported").write_text(str(os.getpid()))

def short(prompts, completions):
    return [WORTH / (1 + len(text)) for text in completions]
"""


@pytest.fixture
def rewards(tmp_path):
    """A folder with lamps.py, room/lamps.py, and what both need."""
    folder = tmp_path / "rewards"
    (folder / "room").mkdir(parents=True)
    (folder / "beside.py").write_text("WORTH = 1.0")
    for name in ("lamps.py", "room/lamps.py"):
        (folder / name).write_text(CODE)
    return folder


@pytest.fixture
def service(tmp_path, rewards):
    with open_service(tmp_path, rewards=str(rewards), allow_python_graders=True, canary_rise="off") as service:
        yield service


def method(reward):
    return {"type": "reinforcement", "reinforcement": {"hyperparameters": {
        "reward": reward, **SMALL, "steps": 1, "num_generations": 2, "max_completion_length": 4}}}


def imported_by(folder):
    """Process ids."""
    return {path.read_text() for path in folder.rglob("*.imported")}


@pytest.mark.dev
def test_the_process_that_trains_imports_it(service, rewards):
    job = service.jobs.create("tiny", upload(service, ROWS), method=method("room.lamps:short"))
    until(lambda: imported_by(rewards) or service.jobs.get(job.id).finished_at)
    assert imported_by(rewards).isdisjoint({"", str(os.getpid())})
    job = service.jobs.wait(job.id, 60)
    assert job.verdict, job.error
    assert job.verdict["new"]["reward"] > 0
    assert not (rewards / "lamps.imported").exists()


def test_nothing_outside_the_folder_is_taken(service, tmp_path):
    evil = tmp_path / "evil.py"
    evil.write_text(CODE)
    file = upload(service, ROWS)
    for named in (f"{evil}:short", "../evil:short", "..evil:short", "evil.py:short", "os:system", "json:dumps",
                  "lamps.py:short", "lamps:short\n", "lamps:", "gone:short", f"{'a' * 5000}:short"):
        with pytest.raises(UsageError, match="reward function"):
            service.jobs.create("tiny", file, method=method(named))
    assert not imported_by(tmp_path)
    assert service.jobs.list() == []


def test_without_a_folder_none_is_taken(tmp_path, rewards):
    """Not even where graders may be Python: these run in a sandbox. The operator's own is not imported either."""
    with open_service(tmp_path, allow_python_graders=True) as service, \
            pytest.raises(UsageError, match="--rewards FOLDER"):
        service.jobs.create("tiny", upload(service, ROWS), method=method(f"{rewards / 'lamps.py'}:short"))
    assert not imported_by(rewards)
    options = {"learn_method": "grpo", "learn_options": "reward=lamps:short"}
    found = learn_method(DaemonConfig(**options, rewards=str(rewards)))
    assert json.loads(json.dumps(found.asked))["reinforcement"]["hyperparameters"]["reward"] == "lamps:short"
    assert not imported_by(rewards)
    with pytest.raises(UsageError, match="--rewards FOLDER"):
        learn_method(DaemonConfig(**options, allow_python_graders=True))
    with pytest.raises(UsageError, match="rewards is"):
        DaemonConfig(rewards=str(tmp_path / "gone")).check()


def test_one_that_cannot_be_imported_fails_its_job(service, rewards):
    (rewards / "beside.py").unlink()
    job = service.jobs.wait(service.jobs.create("tiny", upload(service, ROWS), method=method("lamps:short")).id, 60)
    assert job.error
    assert "No module named 'beside'" in job.error["message"]


WORKER = """from edgetune.daemon.jobs import worker
worker.GRADER_SECONDS = 0.2
main = worker.main
"""


@pytest.mark.dev
def test_a_job_whose_grader_hangs_fails_and_says_which(tmp_path, monkeypatch):
    """A client's pattern that backtracks cannot occupy the process that trains for ever."""
    (tmp_path / "hasty_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = method("")
    asked["reinforcement"]["grader"] = {"type": "regex", "name": "backtracks", "input": "a" * 42 + "b",
                                        "pattern": "(a+)+$"}
    del asked["reinforcement"]["hyperparameters"]["reward"]
    with open_service(tmp_path, start_process=partial(WorkerProcess, "hasty_worker")) as service:
        job = service.jobs.wait(service.jobs.create("tiny", upload(service, ROWS), method=asked).id, 60)
    assert job.status == "failed"
    assert job.error
    assert "backtracks" in job.error["message"]
