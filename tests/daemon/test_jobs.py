"""Jobs on a tiny model, in real processes: steered, stopped, killed, and the same adapter in the end."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from services import ROWS, SMALL, answers, open_service, until, upload
from small_families import small, trained

from edgetune.cli.info import describe
from edgetune.daemon.jobs import jobs as jobs_module
from edgetune.daemon.jobs import queue as work
from edgetune.daemon.jobs.process import WorkerProcess
from edgetune.daemon.jobs.progress import JobProgress
from edgetune.daemon.jobs.worker import RUN
from edgetune.data.dataset import load_rows
from edgetune.data.question import digest
from edgetune.errors import DataError, NotFoundError, TooMuchError, UnsupportedError, UsageError
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training.metrics import CSV, REPORT


@pytest.fixture
def service(tmp_path):
    with open_service(tmp_path) as service:
        yield service


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The SHA-256 of the adapter of a job that nothing disturbed, and its folder, to copy."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with open_service(folder) as service:
        job = service.jobs.wait(begin(service, steps=100).id, 60)
        assert job.status == "succeeded", job.error
        return service.adapters.get(str(job.result)).sha256, folder


def begin(service, **changed):
    return service.jobs.create(service.name, upload(service), hyperparameters={**SMALL, **changed})


def step_of(service, id):
    return (service.jobs.get(id).progress or {}).get("step", 0)


def messages(service, id):
    return [event["message"] for event in reversed(service.jobs.events(id, limit=1000)) if event["type"] == "message"]


@pytest.mark.dev
def test_a_job_from_file_to_service(service):
    """Its weights are those that the daemon holds, not streamed as well: that would take more than all the memory."""
    done = []
    service.jobs.on_done.append(done.append)
    job = service.jobs.create(service.name, upload(service), suffix="home", seed=7, metadata={"why": "\ud800"},
                              hyperparameters=SMALL)
    assert (job.status, job.origin, job.seed, job.metadata) == ("queued", "api", 7, {"why": "\ud800"})
    service.files.delete(str(job.training_file))  # it has rows of its own
    job = service.jobs.wait(job.id, 60)
    assert job.status == "succeeded", job.error
    assert job.started_at
    assert job.finished_at
    found = service.adapters.get(str(job.result))
    assert found.id.startswith("ft:tiny:home:")
    assert (found.job, found.state) == (job.id, "serving" if found.verdict["passed"] else "candidate")
    assert service.adapters.serving == (found.id if found.verdict["passed"] else None)
    until(lambda: done)
    assert [ended.id for ended in done] == [job.id]
    assert not (service.jobs.folder / job.id).exists()
    kept = {path.name for path in service.adapters.path(found.id).iterdir()}
    assert kept == {"adapter.gguf", "daemon.json", "metrics.csv", "metrics.jsonl", "report.html", "run.json",
                    "schema.json"}
    assert not json.loads((service.adapters.path(found.id) / "run.json").read_text())["plan"]["streamed"]
    assert str(job.result).split(":")[1] in (service.adapters.path(found.id) / "report.html").read_text("utf-8")
    events = list(reversed(service.jobs.events(job.id, limit=100)))
    lines = [event["data"] for event in events if event["type"] == "metrics"]
    assert [line["step"] for line in lines if line["event"] == "step"] == list(range(1, 21))
    assert [line["event"] for line in lines][:2] == ["start", "eval"]
    checkpoints = service.jobs.checkpoints(job.id)
    measured = [line["step"] for line in lines if line["event"] == "eval"]
    assert [checkpoint["step_number"] for checkpoint in reversed(checkpoints)] == measured
    assert checkpoints[0]["fine_tuned_model_checkpoint"] == found.id
    assert checkpoints[0]["metrics"]["valid_loss"] < checkpoints[-1]["metrics"]["valid_loss"]
    assert job.trained_tokens == tokens_of(service, events[0]["data"])
    pages = []
    last = None
    while page := service.jobs.events(job.id, last, 7):
        pages += page
        last = page[-1]["id"]
    assert pages == list(reversed(events))


def tokens_of(service, created):
    """Of 20 batches of 4 rows, by llama.cpp's tokenizer: 4 passes over 20 rows."""
    assert created["rows"]["train"]["rows"] == 20
    apart = service.holdout.divide([digest(row) for row in ROWS])
    data = load_rows([row for row in ROWS if digest(row) not in apart], Tokenizer(service.path), max_length=64)
    return 4 * data.tokens


@pytest.mark.dev
def test_a_job_names_its_family(service):
    job = service.jobs.wait(begin(service, family="sora", rank=2, sparsity=0.5, steps=3).id, 60)
    assert (job.status, job.config["family"], job.config["sparsity"]) == ("succeeded", "sora", 0.5)
    assert describe(service.adapters.path(str(job.result)))["family"] == "sora"
    with pytest.raises(UsageError, match="no hyperparameter 'sparsity'"):
        begin(service, sparsity=0.5)


def test_a_path_in_the_record_of_an_added_adapter_is_not_opened(service, tmp_path):
    """A client wrote it. The other options of that adapter are taken."""
    trained(service.path, small("lora-fa"), lr=0.05).save(tmp_path / "added")
    record = tmp_path / "added" / "run.json"
    run = json.loads(record.read_text())
    run["options"]["prompt"] = str(tmp_path / "secret")
    record.write_text(json.dumps(run))
    added = service.add_adapter(tmp_path / "added")
    job = service.jobs.create(added.id, upload(service), hyperparameters={"steps": 2})
    assert (job.config["family"], job.config["rank"], job.config["prompt"]) == ("lora-fa", 4, "")
    service.jobs.cancel(job.id)


@pytest.mark.slow
def test_it_takes_an_adapters_options(service):
    first = service.jobs.wait(begin(service, rank=2, steps=3).id, 60)
    job = service.jobs.create(str(first.result), upload(service), hyperparameters={"steps": 2})
    assert (job.config["rank"], job.config["steps"], job.config["memory"]) == (2, 2, "")
    assert f"takes the options of {first.result}" in " ".join(messages(service, job.id))
    assert service.jobs.wait(job.id, 60).status == "succeeded"


def stops(service):
    """With the daemon, which starts again."""
    folder = service.path.parent
    service.stop()
    with open_service(folder) as again:
        job, = again.jobs.list()
        again.jobs.wait(job.id, 60)
    return "resumed"


def is_killed(service):
    os.kill(service.jobs.pid, signal.SIGKILL)
    return "the training process ended with signal 9; it resumes from what was saved"


def is_refused_by_the_disk(service):
    resource.prlimit(service.jobs.pid, resource.RLIMIT_FSIZE, (1000, 1000))  # of this process alone, to its end
    until(lambda: service.jobs.paused_reason)
    assert "cannot write" in service.health()["reasons"][0]
    return "resumed"


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [stops, is_killed, is_refused_by_the_disk])
def test_a_run_that_is_disturbed_ends_with_the_same_bytes(tmp_path, undisturbed, monkeypatch, disturb):
    monkeypatch.setattr(work, "RETRY_SECONDS", 1.0)
    with open_service(tmp_path) as service:
        job = begin(service, steps=100, checkpoint_every="0.05s")
        until(lambda: step_of(service, job.id) > 10)
        said = disturb(service)
        if disturb is not stops:
            service.jobs.wait(job.id, 60)
    with open_service(tmp_path) as service:
        assert service.adapters.get(str(service.jobs.get(job.id).result)).sha256 == undisturbed[0]
        assert said in messages(service, job.id)
        assert not service.jobs.paused_reason


class KilledBeforeItsReport(WorkerProcess):
    """The first process of a job is killed between the end of the training and the run's report."""

    killed = False

    def begin(self, task):
        self.run = Path(task["folder"]) / RUN
        super().begin(task)

    def events(self):
        for event in super().events():
            if event["event"] == "trained" and not KilledBeforeItsReport.killed:
                KilledBeforeItsReport.killed = True
                os.kill(self.pid, signal.SIGKILL)
                for name in (CSV, REPORT):
                    (self.run / name).unlink()
            yield event


@pytest.mark.dev
def test_a_run_that_was_killed_before_its_report_gets_one(tmp_path):
    with open_service(tmp_path, start_process=KilledBeforeItsReport) as service:
        job = service.jobs.wait(begin(service, steps=3).id, 60)
        assert (job.status, KilledBeforeItsReport.killed) == ("succeeded", True)
        folder = service.adapters.path(str(job.result))
        assert (folder / CSV).read_text().count("\n") > 3
        assert "3 steps" in (folder / REPORT).read_text("utf-8")
        steps = [event["data"]["step"] for event in service.jobs.events(job.id, limit=1000)
                 if (event["data"] or {}).get("event") == "step"]
        assert sorted(steps) == [1, 2, 3]  # trained once


@pytest.mark.dev
def test_a_run_that_cannot_go_on_begins_again(service, monkeypatch):
    job = begin(service, steps=40)
    until(lambda: step_of(service, job.id) > 3)
    service.jobs.pause(job.id)
    until(lambda: service.jobs.running is None)
    monkeypatch.setenv("EDGETUNE_ISA", "scalar")  # other kernels: the rest would have other bits
    service.jobs.resume(job.id)
    assert service.jobs.wait(job.id, 60).status == "succeeded"
    assert any(message.startswith("begins again: the run in ") for message in messages(service, job.id))
    steps = [event["data"]["step"] for event in reversed(service.jobs.events(job.id, limit=1000))
             if (event["data"] or {}).get("event") == "step"]
    assert steps.count(1) == 2
    assert steps[-40:] == list(range(1, 41))


@pytest.mark.dev
def test_a_run_that_does_not_fit_now_goes_on_where_it_was(tmp_path):
    """In a daemon that may use more again. A new job fails, and says how much it needs."""
    with open_service(tmp_path) as service:
        job = begin(service, steps=40)
        until(lambda: step_of(service, job.id) > 2)
    with open_service(tmp_path, memory="60M") as service:
        until(lambda: service.jobs.get(job.id).status == "paused" and service.jobs.running is None)
        assert any("of the daemon's 60 MiB" in text for text in messages(service, job.id))
        assert (service.jobs.folder / job.id / "run").exists()
        new = service.jobs.wait(begin(service).id, 60)
        assert new.error
        assert "--memory" in new.error["message"]
    with open_service(tmp_path) as service:
        service.jobs.resume(job.id)
        job = service.jobs.wait(job.id, 60)
        resumed = [event["data"]["step"] for event in service.jobs.events(job.id, limit=1000)
                   if (event["data"] or {}).get("event") == "resume"]
        assert (job.status, bool(resumed), all(resumed)) == ("succeeded", True, True)
        assert not any(text.startswith("begins again") for text in messages(service, job.id))


def test_the_worker_dies_with_a_daemon_that_is_killed(tmp_path):
    open_service(tmp_path)  # writes the model
    code = ("import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
            "from services import LONG, open_service, upload\n"
            "with open_service(Path(sys.argv[1])) as s:\n"
            "    s.jobs.create('tiny', upload(s), hyperparameters=LONG)\n"
            "    while not s.jobs.pid: time.sleep(0.01)\n"
            "    print(s.jobs.pid, flush=True); time.sleep(60)")
    daemon = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parents[1])],
                              cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    pid = int(daemon.stdout.readline())
    daemon.kill()
    daemon.communicate()
    until(lambda: not Path(f"/proc/{pid}").exists() or "zombie" in Path(f"/proc/{pid}/status").read_text())


@pytest.mark.slow
def test_training_advances_while_answers_never_end(tmp_path):
    with open_service(tmp_path, govern=True) as service:
        job = begin(service, steps=3)
        until(lambda: service.jobs.pid)
        while service.jobs.wait(job.id, 0).status == "running":
            service.generate("lamp on", max_tokens=400).text()
        assert service.jobs.wait(job.id, 1).status == "succeeded"
        decisions = [event["data"]["action"] for event in service.jobs.events(job.id, limit=200)
                     if event["type"] == "metrics" and event["data"]["event"] == "governor"]
        assert "yield" in decisions
        said = {line["action"]: line for line in service.jobs.governor}["yield"]
        assert said["cause"].startswith("someone is being answered")
        assert abs(time.time() - said["at"]) < 600
        assert json.dumps(service.device())


def test_what_is_refused_leaves_nothing(service, monkeypatch):
    file = upload(service)
    two = upload(service, ROWS[:1] * 3)
    for kind, match, options in (
            (NotFoundError, "no model 'gpt-4o'", {"model": "gpt-4o"}),
            (NotFoundError, "no file 'file-0'", {"training_file": "file-0"}),
            (NotFoundError, "no file 'file-1'", {"validation_file": "file-1"}),
            (UsageError, "suffix is '../x'", {"suffix": "../x"}), (UsageError, "suffix has 41", {"suffix": "a" * 41}),
            (UsageError, "seed is -1", {"seed": -1}), (UnsupportedError, "'guesses'", {"method": {"type": "guesses"}}),
            (UsageError, "no hyperparameter 'x'", {"hyperparameters": {"x": 1}}),
            (DataError, "fewer than 2 different rows", {"training_file": two}),
            (DataError, "no rows are left to learn", {"validation_file": file})):
        with pytest.raises(kind, match=match):
            service.jobs.create(**{"model": "tiny", "training_file": file, **options})
    monkeypatch.setattr(jobs_module, "UNFINISHED", 0)
    with pytest.raises(TooMuchError, match="0 jobs are not finished"):
        service.jobs.create("tiny", file)
    assert service.jobs.list() == []
    assert list(service.jobs.folder.iterdir()) == []
    with pytest.raises(UsageError, match="another process is writing"):
        open_service(service.path.parent).start()
    assert answers(service)
    for ask in (service.jobs.get, service.jobs.events, service.jobs.checkpoints, service.jobs.cancel,
                service.jobs.wait):
        with pytest.raises(NotFoundError, match="there is no job 'ftjob-0'"):
            ask("ftjob-0")


def test_what_is_shown_of_a_job(service):
    """The speed of the last step, and of judging how far it is, without a speed."""
    job = service.jobs.create_from_rows(ROWS[:10], ROWS[10:14], hyperparameters={**SMALL, "steps": 2})
    assert (job.origin, job.model) == ("api", "tiny")
    assert service.jobs.events(job.id, limit=100)[-1]["data"]["rows"]["held_out"]["rows"] == 4
    more = service.jobs.create_from_rows(ROWS[:4], ROWS[4:20], hyperparameters={**SMALL, "steps": 2})
    assert service.jobs.events(more.id, limit=100)[-1]["message"] == (
        "created with 4 rows to learn, 16 held out, of which 8 choose the checkpoint")
    service.jobs.cancel(more.id)
    progress = JobProgress(service.jobs.table, job.id)
    progress.take({"event": "start", "done": 0, "steps": 2, "rows": 9, "plan": {"buffers": []}})
    for step, speed in ((1, 900.0), (2, 100.04)):
        progress.take({"event": "step", "step": step, "loss": 1.5, "seconds": 2.0, "tokens": 9, "tokens_per_s": speed})
    assert progress.facts == {"phase": "training", "step": 2, "steps": 2, "loss": 1.5, "tokens_per_s": 100.0,
                              "eta_s": 0}
    progress.take({"event": "trained", "tokens": 18, "record": {}})
    progress.take({"event": "judging", "done": 5, "of": 20})
    assert progress.facts == {"phase": "judging", "step": 2, "steps": 2, "loss": 1.5, "tokens_per_s": None,
                              "eta_s": None, "trained_tokens": 18, "judged": 5, "judging": 20}
    progress.take({"event": "trained", "tokens": 36, "record": {}})
    assert "judged" not in progress.facts
