"""What was deleted is nowhere in the state folder: no text of a question, an answer, a system message or a label."""

from __future__ import annotations

import json
import sqlite3

import pytest
from encoder_daemon import OPTIONS, labelled, write_tiny_encoder
from fake_workers import FakeWorkers
from learners import TRAIN, give, opened
from services import until
from thread_workers import ThreadWorker

from edgetune.daemon.state.schema import TEXTS_LEAVE_JOBS
from edgetune.training.config import TrainConfig

WORDS = ("zqquestion", "zqanswer", "zqwrong", "zqsystem", "zqlabel")


def found_in(state):
    """Words in the names and bytes of files, with the file."""
    return sorted({(str(path.relative_to(state)), word) for path in state.rglob("*") for word in WORDS
                   if word.encode() in path.name.encode() + (path.read_bytes() if path.is_file() else b"")})


def of_text(tiny_q8, _folder):
    asked = [([{"role": "system", "content": "zqsystem"}, {"role": "user", "content": f"turn the zqquestion {i}"}],
              f"zqanswer {i % 2}") for i in range(60)]
    return tiny_q8, {"train": TRAIN, "canary_rise": "off"}, asked


def of_labels(_tiny_q8, folder):
    asked = [([{"role": "user", "content": f"zqquestion {row['prompt']}"}], f"zqlabel_{row['completion']}")
             for row in labelled(60)]
    return write_tiny_encoder(folder / "enc.gguf"), {"train": TrainConfig(**OPTIONS), "context": 0}, asked


def learned(service, asked):
    """The job that learned corrections, whose adapter is active."""
    for messages, answer in asked:
        service.feedback.add(messages=messages, answer="zqwrong", correction=answer)
    job = service.jobs.wait(service.learner.begin().id, 120)
    assert job.status == "succeeded", job.error
    until(lambda: not service.feedback.unsettled())
    if service.adapters.serving != job.result:
        service.adapters.promote(job.result, "for the test")
    return job


@pytest.mark.dev
@pytest.mark.parametrize("made", [of_text, of_labels])
def test_nothing_remains_of_what_was_learned_and_deleted(tiny_q8, tmp_path, made):
    """The second job is given the system message of the first one's adapter."""
    model, options, asked = made(tiny_q8, tmp_path)
    state = tmp_path / "state"
    with opened(model, tmp_path, start_process=ThreadWorker, **options) as service:
        jobs = [learned(service, asked[:30]), learned(service, asked[30:])]
        folders = {service.adapters.get(job.result).folder for job in jobs}
        for item in service.feedback.list(limit=100):
            service.feedback.delete(item.id)
        places = {place for place, _ in found_in(state)}
        assert places  # an adapter remembers, which is said of the feedback
        assert {tuple(place.split("/")[:2]) for place in places} <= {("adapters", folder) for folder in folders}
        service.adapters.promote(None, "for the test")
        for job in jobs:
            service.adapters.delete(job.result)
        assert found_in(state) == []
    assert found_in(state) == []
    with opened(model, tmp_path, start_process=ThreadWorker, **options) as service:
        assert [job.id for job in service.jobs.list()] == [job.id for job in reversed(jobs)]
        assert found_in(state) == []


def test_a_job_that_was_cancelled_leaves_nothing(tiny_q8, tmp_path):
    workers = FakeWorkers()
    with opened(tiny_q8, tmp_path, start_process=workers) as service:
        for messages, answer in of_text(tiny_q8, tmp_path)[2]:
            service.feedback.add(messages=messages, answer="zqwrong", correction=answer)
        job = service.learner.begin()
        workers.next()
        ids = [item.id for item in service.feedback.list(limit=100)]
        assert all("is not finished" in service.feedback.delete(id) for id in ids)
        assert found_in(tmp_path / "state")
        service.jobs.cancel(job.id)
        until(lambda: not any(service.jobs.folder.iterdir()))
        assert found_in(tmp_path / "state") == []


def test_a_program_that_reads_meanwhile_delays_it_to_a_later_write(tiny_q8, tmp_path):
    state = tmp_path / "state"
    with opened(tiny_q8, tmp_path, start_process=FakeWorkers()) as service:
        item = service.feedback.add(prompt="zqquestion", answer="zqwrong", correction="zqanswer")
        with sqlite3.connect(state / "state.db", isolation_level=None) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM feedback").fetchall() == [(1,)]
            service.feedback.delete(item.id)
            assert found_in(state)
        reader.close()
        give(service, range(1))
        assert found_in(state) == []


def test_texts_leave_the_jobs_of_earlier_versions(tiny_q8, tmp_path):
    """But not what a client asked for."""
    workers = FakeWorkers()
    state = tmp_path / "state"
    with opened(tiny_q8, tmp_path, start_process=workers) as service:
        give(service, range(30))
        job = service.learner.begin()
        workers.next().judge()
        service.jobs.wait(job.id, 60)
        with service.store.write() as db:
            db.execute("UPDATE jobs SET config = json_set(config, '$.system', 'zqsystem'), "
                       "method = json_set(method, '$.supervised.hyperparameters.system', 'zqsystem')")
            db.execute("UPDATE events SET data = json_set(data, '$.config.system', 'zqsystem') "
                       "WHERE data LIKE '{\"rows\":%'")
            db.execute("INSERT INTO events (job, created_at, level, type, message, data) VALUES "
                       "(?, 1, 'info', 'message', 'trained', ?)", (job.id, '{"run":{"labels":["zqlabel"]}}'))
        assert {word for _, word in found_in(state)} == {"zqsystem", "zqlabel"}
        before = service.jobs.get(job.id)
        with service.store.write() as db:
            for statement in TEXTS_LEAVE_JOBS.split(";"):
                db.execute(statement)
        service.store.wipe()
        assert found_in(state) == []
        after = service.jobs.get(job.id)
        assert {**before.config, "system": ""} == after.config
        assert "system" not in json.dumps(after.method)
        assert service.jobs.events(job.id, limit=100)
