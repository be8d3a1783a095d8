"""What the database keeps of jobs, the log of what happened, a full disk, and a job's process alone."""

import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from services import LONG, SMALL, open_service, until, upload

from edgetune.daemon.jobs import table as job_table
from edgetune.daemon.jobs.decide import without_scores
from edgetune.daemon.jobs.process import WorkerProcess
from edgetune.daemon.state.database import Store
from edgetune.errors import NotFoundError
from edgetune.python_child import child


def test_what_happened_leaves_a_line_each_in_the_log(tmp_path, workers, caplog):
    with (caplog.at_level(logging.INFO, "edgetune.daemon"),
          open_service(tmp_path, start_process=workers) as service):
        good, bad, best = (service.jobs.create("tiny", upload(service), hyperparameters=SMALL) for _ in range(3))
        workers.next().judge(False)
        workers.next().fail()
        workers.next().judge(True)
        active = service.jobs.wait(best.id, 60).result
        assert service.adapters.serving == active
        adapter = service.jobs.wait(good.id, 60).result
        service.jobs.wait(bad.id, 60)
        service.adapters.promote(None, "by hand")
        service.adapters.promote(adapter, "by hand")
        service.adapters.rollback("asked for")
        lines = [record.getMessage() for record in caplog.records]
    for begin in (f"{good.id}: created with ", f"{good.id}: begun", f"{bad.id}: the loss is ",
                  f"{adapter} is active: by hand", "the base alone is active: asked for"):
        assert len([line for line in lines if line.startswith(begin)]) == 1, (begin, lines)
    assert any(line.startswith(f"{good.id}: not activated: ") for line in lines)
    assert len([line for line in lines if "activated" in line and best.id in line]) == 1
    assert not any(line.startswith(f"{active} is active") for line in lines)


def test_verdicts_of_an_earlier_edgetune_are_found_in_its_events(tmp_path):
    with tarfile.open(Path(__file__).parents[1] / "fixtures" / "states-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    state = tmp_path / "daemon/state"
    with closing(sqlite3.connect(state / "state.db")) as db:
        verdicts = dict(db.execute("SELECT job, verdict FROM adapters").fetchall())
    store = Store(state)
    found = {job.id: job.verdict for job in job_table.JobTable(store).list(None, 100) if job.result}
    store.close()
    assert found
    for id, verdict in found.items():
        assert verdict == {name: value for name, value in json.loads(verdicts[id]).items() if name != "scores"}


@pytest.mark.slow
def test_a_full_disk_in_earnest(tmp_path):
    """See lab/mounted.py."""
    apart = ["unshare", "-rm"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare and user namespaces")
    script = Path(__file__).parents[1] / "lab" / "mounted.py"
    done = subprocess.run([*apart, sys.executable, script, "state", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("version", ["", "0.0.1"])
def test_a_worker_ends_without_a_word_if_nobody_asks_and_says_that_another_edgetune_asks(version):
    task = json.dumps({"version": version, "parent": os.getpid(), "policy": {"nice": 0}}) + "\n" if version else ""
    with subprocess.Popen(**child("edgetune.daemon.jobs.worker"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as worker:
        if not version:
            assert (*worker.communicate(), worker.returncode) == ("", "", 75)
            return
        worker.stdin.write(task)
        worker.stdin.flush()
        said = json.loads(worker.stdout.readline())
    assert (said["event"], said["kind"]) == ("failed", "MismatchError")
    assert "the daemon is edgetune 0.0.1" in said["what"]


@pytest.mark.dev
def test_what_computes_is_in_the_daemons_log_alone(tmp_path, monkeypatch, caplog, capfd):
    """A worker logs as a GPU's backend does, in a service that an app embeds."""
    place = tmp_path / "logging_worker.py"
    place.write_text("""
import logging
from edgetune.daemon.jobs import worker

class Worker(worker.Worker):
    def train(self):
        logging.getLogger("edgetune.backends").info("computing on the GPU")
        super().train()

worker.Worker = Worker
main = worker.main
""")
    monkeypatch.syspath_prepend(str(tmp_path))
    start = partial(WorkerProcess, place.stem)
    with caplog.at_level(logging.INFO, "edgetune.daemon"), open_service(tmp_path, start_process=start) as service:
        job = service.jobs.create("tiny", upload(service), hyperparameters={"steps": 1})
        assert service.jobs.wait(job.id, 60).status == "succeeded"
    assert f"{job.id}: computing on the GPU" in caplog.messages
    assert "computing" not in "".join(capfd.readouterr())


@pytest.mark.dev
def test_of_old_jobs_nothing_is_kept(folder, monkeypatch, workers):
    monkeypatch.setattr(job_table, "KEPT", 1)
    with open_service(folder, start_process=workers) as service:
        before = {job.id for job in service.jobs.list()}
        gone = [service.jobs.create("tiny", upload(service), hyperparameters=LONG).id for _ in range(3)]
        for id in gone:
            service.jobs.pause(id)
        until(lambda: service.jobs.running is None)
        for id in gone:
            service.jobs.cancel(id)
        left = {job.id for job in service.jobs.list()}
        assert left == before | {gone[-1]}  # jobs that made an adapter stay as long as it does, and those in line
        with pytest.raises(NotFoundError):
            service.jobs.get(gone[0])
        rows = service.store.read("SELECT DISTINCT job FROM events UNION SELECT DISTINCT job FROM checkpoints")
        assert {row["job"] for row in rows} == left


def test_results_are_removed_with_their_job(folder, monkeypatch):
    monkeypatch.setattr(job_table, "KEPT", 1)
    with open_service(folder) as service:
        adapters = {adapter.state: adapter for adapter in service.adapters.list()}
        gone = adapters["retired"]
        kept = adapters["serving"]
        for adapter in (gone, kept):
            assert service.jobs.get(adapter.job).verdict == without_scores(adapter.verdict)
            id, = service.jobs.get(adapter.job).result_files
            assert service.files.content(id).name == f"{id}.csv"
        service.adapters.delete(gone.id)
        other = next(job for job in service.jobs.list() if job.status == "paused")
        service.jobs.cancel(other.id)  # the end of a job removes old ones
        left = [id for job in service.jobs.list() for id in job.result_files]
        assert left == [f"file-{kept.job.removeprefix('ftjob-')}"]
        assert [path.name for path in service.files.folder.glob("*.csv")] == [f"{left[0]}.csv"]
        service.files.delete(left[0])
        assert service.jobs.get(kept.job).result_files == []
