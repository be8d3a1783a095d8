"""Adapters from another place: the gate evaluates them by this device's held-out questions; probation."""

import json

import pytest
from commands import run
from daemons import daemon
from learners import TRAIN, give, opened
from rollouts import write_adapters
from services import until
from thread_workers import ThreadWorker

from edgetune.daemon.kinds.evaluation import EvaluationRequest
from edgetune.daemon.state import database
from edgetune.errors import NotFoundError, UsageError

PROMOTE = EvaluationRequest(promote=True)


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    return write_adapters(tiny_llama, tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def service(tiny_llama, tmp_path):
    with opened(tiny_llama, tmp_path, start_process=ThreadWorker, canary_rise="off", learn_rows=100) as service:
        yield service


def evaluate(service, folder, **options):
    """The adapter after its evaluation, and the job."""
    id = service.add_adapter(folder).id
    job = service.evaluate_adapter(id, EvaluationRequest(**options))
    job = service.jobs.wait(job.id, 60)
    assert job.status == "succeeded", job.error
    return service.adapters.get(id), job


@pytest.mark.dev
def test_the_better_one_is_activated_and_rolled_back_with_one_command(service, made):
    give(service, range(30))
    found, job = evaluate(service, made / "on")
    assert (found.state, found.verdict["passed"], job.result) == ("candidate", True, found.id)
    assert found.verdict["new"]["right"] == found.verdict["new"]["rows"] == 6
    assert service.jobs.table.tests_before() == 1  # it passed, and nothing was published: its test is spent
    found, job = evaluate(service, made / "on", promote=True)
    assert (found.state, service.adapters.serving) == ("serving", found.id)
    assert "activated" in service.jobs.events(job.id)[0]["message"]
    assert service.jobs.table.tests_before() == 0
    assert service.feedback.waiting() == 30  # an evaluation takes no feedback
    with pytest.raises(UsageError, match="compared with itself"):
        service.evaluate_adapter(found.id)
    assert service.adapters.rollback("asked for", only=found.id) is None
    with pytest.raises(UsageError, match="is not active"):
        service.adapters.rollback("asked for", only=found.id)


@pytest.mark.dev
def test_a_worse_one_is_refused_and_the_active_one_stays(service, made):
    give(service, range(30))
    active, _ = evaluate(service, made / "on", promote=True)
    for required in ("better", "not-worse"):
        found, job = evaluate(service, made / "off", promote=True, required=required)
        assert (found.state, found.verdict["passed"]) == ("candidate", False)
        assert (found.verdict["losses"], found.verdict["against"]) == (6, active.id)
        assert service.adapters.serving == active.id
        assert "not activated" in service.jobs.events(job.id)[0]["message"]
    assert found.verdict["reason"].startswith("worse on held-out questions: 0 better, 6 worse")
    same, _ = evaluate(service, made / "on", promote=True)
    assert same.verdict["reason"].startswith("not surely better")
    same, _ = evaluate(service, made / "on", promote=True, required="not-worse")
    assert (same.state, same.verdict["test"]) == ("serving", 1)  # with itself nothing differs: that was no test
    assert service.jobs.table.tests_before() == 0


def test_without_held_out_questions_it_decides_nothing_unless_told_to(service, made):
    give(service, range(10))
    id = service.add_adapter(made / "on").id
    with pytest.raises(UsageError, match=r"2 questions are held out on this device, and 4 are needed .*canary"):
        service.evaluate_adapter(id, PROMOTE)
    with pytest.raises(UsageError, match="unrelated text has no limits"):
        service.evaluate_adapter(id, EvaluationRequest(promote=True, if_none="canary"))
    assert (service.adapters.serving, service.jobs.list()) == (None, [])
    with pytest.raises(NotFoundError):
        service.evaluate_adapter("ft:none")
    for wrong in ({"required": "best"}, {"bad_ratings": 0, "promote": True}, {"probation": 5}):
        with pytest.raises(UsageError):
            service.evaluate_adapter(id, EvaluationRequest(**wrong))


@pytest.mark.parametrize(("answer", "passes"), [("on", True), ("off", False)])
def test_unrelated_text_alone(tiny_llama, tmp_path, made, answer, passes):
    """It says "on"."""
    with opened(tiny_llama, tmp_path, start_process=ThreadWorker, canary_rise="100%") as service:
        found, _ = evaluate(service, made / answer, promote=True, if_none="canary")
        assert (found.verdict["passed"], found.state == "serving") == (passes, passes)
        assert ("no held-out question was asked" if passes else "unlearned other things") in found.verdict["reason"]


def test_bad_ratings_roll_back_within_the_probation(service, made, monkeypatch):
    give(service, range(30))
    before, _ = evaluate(service, made / "on", promote=True)
    found, _ = evaluate(service, made / "on", promote=True, required="not-worse", probation=3600, bad_ratings=2)
    assert service.probations.facts(before) is None
    rate = [{"role": "user", "content": "turn the heater 1"}]
    service.feedback.add(messages=rate, answer="on", rating="up", model=found.id)
    for number in range(2):
        asked = [{"role": "user", "content": f"turn the fan {number}"}]
        service.feedback.add(messages=asked, answer="on", correction="off", model="another")  # of no concern
        service.feedback.add(messages=asked, answer="on", rating="down", model=found.id)
        facts = service.probations.facts(service.adapters.get(found.id))
        assert (facts["state"], facts["bad"], facts["good"]) == (["running", "rolled back"][number], number + 1, 1)
    assert service.adapters.serving == before.id
    assert "2 bad ratings and 1 good ones in its probation" in service.adapters.history()[0]["cause"]
    again, _ = evaluate(service, made / "on", promote=True, required="not-worse", probation=3600, bad_ratings=2)
    later = database.now() + 3601
    monkeypatch.setattr("edgetune.daemon.probation.now", lambda: later)
    assert service.probations.facts(service.adapters.get(again.id))["state"] == "passed"
    monkeypatch.setattr("edgetune.daemon.learning.feedback.now", lambda: later)
    for number in range(3):
        service.feedback.add(prompt=f"turn the fan {number}", answer="on", rating="down", model=again.id)
    assert service.adapters.serving == again.id
    service.adapters.promote(service.add_adapter(made / "on").id, "by hand")
    assert service.probations.facts(service.adapters.get(again.id))["state"] == "replaced"


def test_it_is_evaluated_again_where_another_became_active_meanwhile(service, made):
    give(service, range(30))
    other = service.add_adapter(made / "off").id
    id = service.add_adapter(made / "on").id
    kind_finish = service.jobs._queue._finish
    switched = []

    def finish(job, verdict):
        if not switched:
            switched.append(service.adapters.promote(other, "by hand"))
        return kind_finish(job, verdict)

    service.jobs._queue._finish = finish
    job = service.jobs.wait(service.evaluate_adapter(id, PROMOTE).id, 60)
    found = service.adapters.get(id)
    assert (job.status, found.state, found.verdict["against"]) == ("succeeded", "serving", other)
    assert any("evaluated again" in event["message"] for event in service.jobs.events(job.id))


def test_by_http_and_the_command(tiny_llama, tmp_path, made, monkeypatch):
    with daemon(tiny_llama, tmp_path / "state", TRAIN, start_process=ThreadWorker, context=512) as running:
        monkeypatch.setenv("EDGETUNE_URL", running.url)
        added = json.loads(run("adapters", "add", made / "on", "--json"))["id"]
        said = run("adapters", "evaluate", added, "--promote", code=2)
        assert "0 questions are held out on this device" in said
        give(running.service, range(30))
        said = run("adapters", "evaluate", added, "--promote", "--probation", "1h")
        assert said.startswith(f"{added} is active: 6 of 6 validation examples are answered exactly")
        assert "compared with itself" in run("adapters", "evaluate", added, code=2)
        worse = json.loads(run("adapters", "add", made / "off", "--json"))["id"]
        assert f"{worse} is refused" in run("adapters", "evaluate", worse, "--required", "not-worse", code=3)
        found = {one["id"]: one for one in json.loads(run("adapters", "--json"))["data"]}
        assert found[added]["probation"]["state"] == "running"
        assert found[worse]["probation"] is None
        assert "is not active" in run("adapters", "rollback", worse, code=2)
        assert "active: the base alone" in run("adapters", "rollback", added)
        assert "is no time" in run("adapters", "evaluate", worse, "--probation", "soon", code=2)
        until(lambda: running.service.jobs.running is None)
