"""Kinds of jobs: one that a test adds is created, done by a process, evaluated by the gate, settled and shown."""

import time

import pytest
from services import open_service, until

from edgetune.daemon.api.metrics import Metrics
from edgetune.daemon.kinds.base import JobKind
from edgetune.daemon.kinds.registry import REGISTERED, kind_of, kinds, register
from edgetune.errors import FormatError


@pytest.fixture
def toy():
    """The origin of a kind that other tests do not see."""
    import toy_kinds
    REGISTERED["toy"] = toy_kinds.ToyJob()
    yield "toy"
    del REGISTERED["toy"]


@pytest.mark.dev
def test_a_kind_in_one_file(tmp_path, toy):
    with open_service(tmp_path, canary_rise="off", learn="idle") as service:
        learner = service.learner
        now = time.monotonic() + 10_000
        assert learner.state(now)[toy] == {"loudness": "low", "needed": 2, "waits": "",
                                              "state": "begins to listen"}
        learner.tick(now)
        job, = service.jobs.list()
        assert (job.origin, job.suffix) == (toy, "whispered")
        assert job.id in learner.state(now)[toy]["state"]
        job = service.jobs.wait(job.id, 60)
        assert job.status == "succeeded", job.error
        assert job.verdict
        assert job.verdict["new"]["rows"] == 3
        assert service.adapters.get(str(job.result)).id.startswith("ft:tiny:whispered:")
        events = service.jobs.events(job.id, limit=100)
        assert any(event["message"] == "heard 3 words" for event in events)
        assert sum((event["data"] or {}).get("event") == "step" for event in events) == 4
        until(lambda: learner.starters["whispers"].settled == [job.id])
        assert 'edgetune_jobs{status="succeeded"} 1.0' in Metrics(service).text()[0].decode()


def test_a_job_of_a_kind_that_is_not_known_is_a_damaged_row(tmp_path, toy):
    with open_service(tmp_path) as service:
        job = service.learner.begin("whispers")
        service.jobs.cancel(job.id)
        del REGISTERED[toy]
        assert service.jobs.list() == []
        assert any("row of jobs" in reason for reason in service.health()["reasons"])
        REGISTERED[toy] = JobKind()


def test_the_kinds_that_there_are():
    assert {"api", "evaluate", "learn"} <= kinds().keys()
    with pytest.raises(FormatError, match="'nobody'"):
        kind_of("nobody")
    with pytest.raises(ValueError, match="Other"):  # two cannot have one origin
        register(type("Other", (JobKind,), {"origin": "api"}))
