"""edgetune.daemon.learning.file_rows: a feedback job learns the file again that the active adapter has learned."""

import json
from dataclasses import replace

import pytest
from learners import give, opened
from services import until, upload
from typed_rows import typed_rows

from edgetune.daemon.jobs.recipe import MEASURED, SELECTING, held_rows
from edgetune.daemon.jobs.recipe import TRAIN as TRAIN_ROWS
from edgetune.daemon.kinds.feedback import ALL
from edgetune.daemon.learning import file_rows
from edgetune.daemon.state.files import Rows
from edgetune.errors import TooMuchError, UsageError

FILE = [{"prompt": f"turn the lamp {i}", "completion": "off"} for i in range(40)]
PAIRS = [{"prompt": f"turn the lamp {i}", "chosen": "off", "rejected": "on"} for i in range(20)]
QUESTIONS = [{"prompt": f"turn the lamp {i}", "completion": "off", "lamp": i} for i in range(20)]
REWARDED = {"type": "reinforcement", "reinforcement": {"grader": {
    "type": "string_check", "name": "off", "input": "{{sample.output_text}}", "operation": "eq", "reference": "off"}}}
SAID = [{"role": "user", "content": "turn the lamp 7"}]


def as_chat(rows):
    return [{"messages": [{"role": "user", "content": row["prompt"]},
                          {"role": "assistant", "content": row["completion"]}]} for row in rows]


def activated(service, workers, job):
    """The job, after its process said that its adapter is better."""
    workers.next().judge()
    job = service.jobs.wait(job.id, 60)
    assert service.adapters.serving == job.result
    until(lambda: not service.feedback.unsettled())
    return job


def of_file(service, workers, rows=FILE, **options):
    """(the upload, rows that its job learned, rows that it held out), after its adapter became active."""
    file = upload(service, rows)
    job = service.jobs.create("tiny", file, **options)
    folder = service.jobs.folder / job.id
    learned = list(Rows(folder / TRAIN_ROWS))
    activated(service, workers, job)
    return file, learned, [row for row in rows if row not in learned]


def begun(service, name="feedback"):
    """(a job that begins now, rows to learn, rows that are held out, the earlier jobs of the first of these)."""
    job = service.learner.begin(name)
    folder = service.jobs.folder / job.id
    return job, list(Rows(folder / TRAIN_ROWS)), *held_rows(folder)


def cancelled(service, workers, job):
    workers.next()
    service.jobs.cancel(job.id)
    service.jobs.wait(job.id, 60)
    until(lambda: not service.feedback.unsettled())


def history(service, job):
    return " ".join(event["message"] for event in service.jobs.events(job.id, limit=100))


def lamps(rows):
    """Rows of the file among these, in whichever shape."""
    return [row for row in rows if "turn the lamp" in json.dumps(row)]


def test_jobs_learn_the_file_again_as_long_as_the_active_adapter_knows_it(service, workers):
    file, learned, held_out = of_file(service, workers)
    give(service, range(20))
    job, rows, held, rounds = begun(service)
    assert (job.training_file, job.metadata["file"]) == (file, str(len(learned)))
    assert rows[: len(learned)] == as_chat(learned)  # they were learned before, so they come first
    assert not [row for row in rows if row in as_chat(held_out)]
    assert lamps(rows[len(learned) :])  # and are mixed with the new ones
    assert sorted(map(json.dumps, lamps(held))) == sorted(map(json.dumps, as_chat(held_out)))
    assert rounds == [file] * len(held_out)
    assert f"learns {len(learned)} of 40 rows of {file} again; {len(held_out)} of its held-out rows" in history(
        service, job)
    activated(service, workers, job)

    give(service, range(20, 40))
    second, rows, held, rounds = begun(service)
    assert second.training_file == file
    assert rows[: len(learned)] == as_chat(learned)
    assert second.metadata["earlier"] == "16"
    assert [rounds.count(of) for of in (file, job.id)] == [len(held_out), 4]
    activated(service, workers, second)

    third, rows, held, rounds = begun(service, ALL)
    assert third.training_file == file
    assert rows[: len(learned)] == as_chat(learned)
    assert rounds.count(file) == len(held_out)
    cancelled(service, workers, third)
    for _ in range(3):
        service.adapters.rollback("for the test")
    assert service.adapters.serving is None
    fourth, rows, held, rounds = begun(service, ALL)
    assert not lamps(rows + held)
    assert fourth.training_file is None


@pytest.mark.dev
def test_the_gate_asks_for_what_the_file_taught(trains):
    """In earnest: one process learns a file, then another feedback that says nothing of it."""
    file = upload(trains, FILE[:20])
    first = trains.jobs.wait(trains.jobs.create("tiny", file, hyperparameters={"steps": 2}).id, 60)
    trains.adapters.promote(first.result, "for the test")
    give(trains, range(20))
    job = trains.jobs.wait(trains.learner.begin().id, 60)
    assert job.status == "succeeded", job.error
    (counts,) = job.verdict["rounds"]
    earlier = job.verdict["tests"]["earlier"]
    assert (counts["job"], counts["rows"]) == (file, earlier["wins"] + earlier["losses"] + earlier["ties"])


@pytest.mark.dev
@pytest.mark.parametrize("system", ["", "Turn what is said into an action."])
@pytest.mark.parametrize("asked", [{"prompt": "turn the lamp 7"}, {"messages": SAID}, "with system"])
def test_a_persons_answer_counts_and_not_that_of_the_file(service, workers, asked, system):
    if asked == "with system":
        asked = {"messages": [*([{"role": "system", "content": system}] if system else []), *SAID]}
    service.jobs.train = replace(service.jobs.train, system=system)
    of_file(service, workers)
    give(service, range(20))
    service.feedback.add(**asked, correction="on")
    _, rows, held, _ = begun(service)
    about = [row for row in rows + held if '"turn the lamp 7"' in json.dumps(row)]
    assert all('"off"' not in json.dumps(row) for row in about)
    assert len(lamps(held) + lamps(rows)) > 39


def test_a_deleted_file_is_not_learned_again(service, workers):
    """Nor is one of which the job's rows are left, or one whose bytes changed; the history says so."""
    file, *_ = of_file(service, workers)
    give(service, range(20))
    content = service.files.content(file)
    content.write_bytes(content.read_bytes() + b"\n")
    job, rows, held, rounds = begun(service)
    assert not lamps(rows + held)
    assert f"does not learn {file} again" in history(service, job)
    assert "not those that were uploaded" in history(service, job)
    cancelled(service, workers, job)
    service.files.delete(file)
    job, rows, held, rounds = begun(service)
    assert not lamps(rows + held)
    assert rounds == []
    assert (job.training_file, "file" in job.metadata) == (None, False)
    assert f"does not learn {file} again" in history(service, job)
    activated(service, workers, job)
    give(service, range(20, 40))
    job, *_ = begun(service)
    assert file not in history(service, job)


def test_a_file_that_is_deleted_while_a_job_begins(service, workers):
    file, *_ = of_file(service, workers)
    rows = service.files.rows(file)
    place, row = list(rows.placed())[5]
    assert rows.at(place) == row == FILE[5]
    service.files.delete(file)
    with pytest.raises(TooMuchError, match=f"{file} was deleted"):
        rows.at(place)


def test_a_validation_file_is_held_out(service, workers):
    """If it is deleted, all other rows are still learned, and none of them is asked."""
    validation = upload(service, FILE[30:])
    file, learned, _ = of_file(service, workers, FILE[:30], validation_file=validation)
    assert len(learned) == 30
    give(service, range(20))
    job, rows, held, rounds = begun(service)
    assert job.validation_file == validation
    assert rows[:30] == as_chat(FILE[:30])
    assert sorted(map(json.dumps, lamps(held))) == sorted(map(json.dumps, as_chat(FILE[30:])))
    assert rounds == [file] * 10
    cancelled(service, workers, job)
    service.files.delete(validation)
    job, rows, held, rounds = begun(service)
    assert rows[:30] == as_chat(FILE[:30])
    assert not lamps(held)
    assert (rounds, job.validation_file) == ([], validation)


def test_of_a_large_file_some_rows_are_learned(service, workers, monkeypatch):
    monkeypatch.setattr(file_rows, "MOST_LEARNED", 10)
    monkeypatch.setattr(file_rows, "MOST_HELD", 3)
    file, learned, _ = of_file(service, workers)
    give(service, range(20))
    job, rows, held, rounds = begun(service)
    chosen = lamps(rows[:10])
    assert len(chosen) == 10
    assert all(row in as_chat(learned) for row in chosen)
    assert chosen != as_chat(learned)[:10]
    assert len(rounds) == len(lamps(held)) == 3
    assert f"learns 10 of 40 rows of {file}" in history(service, job)
    cancelled(service, workers, job)
    again, rows, *_ = begun(service)
    assert lamps(rows[:10]) == chosen
    cancelled(service, workers, again)
    service.jobs.train = replace(service.jobs.train, seed=8)
    _, rows, *_ = begun(service)
    assert lamps(rows[:10]) != chosen


def test_pairs_are_asked_and_not_imitated(service, workers):
    """The training measures no loss on them either."""
    file, *_ = of_file(service, workers, PAIRS, method={"type": "dpo"})
    give(service, range(20))
    job, rows, held, rounds = begun(service)
    assert not lamps(rows)
    assert lamps(held) == [row for row in held if "chosen" in row]
    assert rounds == [file] * len(lamps(held)) != []
    assert job.training_file is None
    assert f"does not learn {file} again" in history(service, job)
    assert not lamps(Rows(service.jobs.folder / job.id / MEASURED))


def test_rewarded_questions_are_neither_learned_nor_asked(service, workers):
    file, *_ = of_file(service, workers, QUESTIONS, method=REWARDED)
    give(service, range(20))
    job, rows, held, rounds = begun(service)
    assert not lamps(rows + held)
    assert rounds == []
    assert f"does not learn {file} again" in history(service, job)


@pytest.mark.parametrize(("method", "is_learned"), [("dpo", True), ("kto", False)])
def test_a_daemon_that_learns_by_another_method(tiny_q8, tmp_path, workers, method, is_learned):
    """What it cannot learn again is asked, so that an adapter without it does not become active."""
    with opened(tiny_q8, tmp_path, start_process=workers, learn_method=method) as service:
        file, learned, held_out = of_file(service, workers, PAIRS, method={"type": "dpo"})
        for i in range(20):
            service.feedback.add(messages=[{"role": "user", "content": f"turn the light {i}"}], answer="off",
                                 correction="on")
        job, rows, held, _ = begun(service)
        assert lamps(rows[: len(learned)]) == (learned if is_learned else [])
        assert job.training_file == (file if is_learned else None)
        assert sorted(map(json.dumps, lamps(held))) == sorted(map(json.dumps, held_out))


def test_rows_of_the_calling_program_are_a_file(service, workers):
    """It can delete that, too. Of a job that is refused nothing remains."""
    with pytest.raises(UsageError, match="no hyperparameter"):
        service.jobs.create_from_rows(FILE[:20], FILE[20:], hyperparameters={"ranks": 4})
    assert not service.files.list()
    job = service.jobs.create_from_rows(FILE[:20], FILE[20:])
    assert list(service.files.rows(job.training_file)) == FILE[:20]
    assert list(service.files.rows(job.validation_file)) == FILE[20:]
    activated(service, workers, job)
    give(service, range(20))
    _, rows, held, _ = begun(service)
    assert rows[:20] == as_chat(FILE[:20])
    assert len(lamps(held)) == 20


def test_a_file_of_typed_questions_is_learned_again_by_their_letters(service, workers):
    file = upload(service, typed_rows(20))
    job = service.jobs.create("tiny", file)
    folder = service.jobs.folder / job.id
    learned = list(Rows(folder / TRAIN_ROWS))
    held = [*held_rows(folder)[0], *Rows(folder / SELECTING)]
    assert len(learned) + len(held) == 60
    assert {row["messages"][1]["content"] for row in [*learned, *held]} == {"A", "B", "C"}
    activated(service, workers, job)
    give(service, range(20))
    _, rows, again, rounds = begun(service)
    assert rows[:len(learned)] == learned
    typed = [row for row in again if "one letter" in json.dumps(row)]
    assert (len(typed), rounds.count(file)) == (len(held), len(held))
    assert all(row in held for row in typed)
