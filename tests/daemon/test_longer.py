"""edgetune.daemon.jobs.longer: a job that has not learned enough trains longer, and its best adapter remains."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from services import ROWS, SMALL, open_service, until, upload

from edgetune.adapters import store
from edgetune.daemon.jobs import longer
from edgetune.daemon.service import Service
from edgetune.training.metrics import NAME as METRICS

AUTO = {name: value for name, value in SMALL.items() if name != "steps"}
USELESS = {**AUTO, "lr": 1e-6}


def messages(service: Service, id: str) -> list[str]:
    return [event["message"] for event in reversed(service.jobs.events(id, limit=1000)) if event["type"] == "message"]


@pytest.mark.slow
def test_nothing_right_trains_longer_and_stays_out(tmp_path: Path) -> None:
    """Also where the process is killed while it does, for which judging by edgetune's own canary leaves time."""
    with open_service(tmp_path, canary="") as service:
        job = service.jobs.create("tiny", upload(service), hyperparameters={**USELESS, "checkpoint_every": "0.05s"})
        until(lambda: "0 of 4 right yet: trains longer" in messages(service, job.id))
        begun = len(service.jobs.events(job.id, limit=1000))
        until(lambda: len(service.jobs.events(job.id, limit=1000)) > begun + 4)
        os.kill(until(lambda: service.jobs.pid), signal.SIGKILL)
        job = service.jobs.wait(job.id, 120)
        assert job.status == "succeeded", job.error
        found = service.adapters.get(str(job.result))
        said = messages(service, job.id)
        assert (found.state, service.adapters.serving) == ("candidate", None)
        assert found.verdict["reason"] == ("0 of 4 validation examples are answered exactly, as before, after training "
                                           "longer 2 times")
        assert said.count("0 of 4 right yet: trains longer") == longer.LEGS
        assert not any(message.startswith("begins again") for message in said)
        steps = {event["data"]["step"] for event in service.jobs.events(job.id, limit=1000)
                 if event["type"] == "metrics" and event["data"]["event"] == "step"}
        assert steps == set(range(1, max(steps) + 1))


@pytest.mark.slow
def test_the_number_of_steps_that_was_asked_for_is_kept(tmp_path: Path) -> None:
    with open_service(tmp_path) as service:
        job = service.jobs.wait(service.jobs.create("tiny", upload(service), hyperparameters={
            **USELESS, "steps": 3}).id, 60)
        assert not any("trains longer" in message for message in messages(service, job.id))
        assert job.verdict["unfinished"] == "0 of 4 right yet"


def test_what_becomes_right_is_let_in(tmp_path: Path) -> None:
    """No number of steps is given; what serves in the end answers the held-out rows."""
    rows = [{**row, "completion": "on"} for row in ROWS]
    with open_service(tmp_path, canary_rise="off") as service:
        job = service.jobs.wait(service.jobs.create("tiny", upload(service, rows), hyperparameters=AUTO).id, 60)
        assert service.adapters.serving == job.result
        assert job.verdict["new"]["right"] == 4
        assert messages(service, job.id)[-1] == "activated: 4 of 4 validation examples are answered exactly, 0 before"


# ---- which adapter remains -------------------------------------------------------------------------------------------


def verdict(passed: bool, right: int, kept: int | None = None) -> dict[str, Any]:
    return {"passed": passed, "new": {"right": right}, "corrected": None if kept is None else {"rows": 9, "kept": kept}}


@pytest.mark.parametrize(("judged", "best"), [
    ([verdict(False, 0), verdict(False, 0)], 0), ([verdict(False, 0), verdict(True, 3)], 1),
    ([verdict(True, 2, 3), verdict(True, 1, 9), verdict(True, 1, 8)], 1),
    ([verdict(True, 2, 3), verdict(False, 2, 9)], 0)])
def test_the_best_remains(tmp_path: Path, judged: list[dict[str, Any]], best: int) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for number, found in enumerate(judged):
        for name in (store.FILE, store.RUN, METRICS):
            (run / name).write_text(f"{number}")
        longer.keep_best(run, found)
    (run / "checkpoint-9").write_text("of a leg that failed")
    assert not longer.is_being_taken(run)
    assert longer.take_best(run) == json.loads(json.dumps(judged[best]))
    assert (run / store.FILE).read_text() == f"{best}"
    assert not (run / "checkpoint-9").exists()
    assert not longer.has_best(run)


def test_a_kill_while_the_best_is_taken(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (store.FILE, store.RUN, METRICS):
        (run / name).write_text("0")
    longer.keep_best(run, verdict(True, 2))
    (tmp_path / longer.FINAL).touch()
    (run / store.FILE).unlink()  # a part of it is gone already
    assert longer.is_being_taken(run)
    assert longer.take_best(run) == verdict(True, 2)
    assert (run / store.FILE).exists()
    assert not longer.is_being_taken(run)
