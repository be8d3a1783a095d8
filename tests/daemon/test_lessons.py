"""edgetune.daemon.learning.curriculum: the rows of a job, how often and in which order."""

import json
import tracemalloc
from dataclasses import replace

import pytest
from learners import TRAIN, give
from services import until

from edgetune import TrainConfig
from edgetune.daemon.jobs.recipe import TRAIN as TRAIN_ROWS
from edgetune.daemon.learning.curriculum import JobRows, curriculum, least_rows, passes_over
from edgetune.objectives.base import objectives


def rows(name, n):
    return [{"prompt": f"{name} {i}", "completion": ""} for i in range(n)]


@pytest.mark.parametrize("passes", [1, 4])
def test_curriculum(passes):
    new = rows("new", 10)
    earlier = rows("earlier", 40)
    made = curriculum(new, earlier, passes, 1.0, seed=3)
    assert made == curriculum(new, earlier, passes, 1.0, seed=3) != curriculum(new, earlier, passes, 1.0, seed=4)
    assert made[:40] == earlier
    for turn in range(passes):
        block = [row["prompt"] for row in made[40 + 20 * turn :][:20]]
        assert {row["prompt"] for row in new} <= set(block)
        assert len(set(block)) == 20  # as many earlier ones, no one twice
    assert len(made) == 40 + 20 * passes
    assert len(curriculum(new, [], passes, 1.0, 0)) == 10 * passes
    assert len(curriculum(new, earlier[:5], passes, 4.0, 0)) == 5 + 15 * passes


def test_how_often_rows_are_learned():
    """Earlier ones as long as the active adapter learned them; few new ones often, but no more than those of a file."""
    new = rows("new", 10)
    earlier = rows("earlier", 40)
    assert [len(curriculum(new, earlier, 4, 1.0, 0, 0, least)) for least in (0, 80, 81, 130, 200, 201)] == [
        120, 120, 124, 172, 240, 240]
    made = curriculum(new, earlier, 4, 1.0, 0, 0, 130)
    block = [row["prompt"] for row in made[40:][:33]]
    assert len(set(block)) == 33
    assert {row["prompt"] for row in new} <= set(block)
    assert [len(curriculum(new, earlier, 4, 1.0, 0, 241, least)) for least in (0, 200)] == [260, 290]
    anew = [row["prompt"] for row in curriculum(new, [], 4, 1.0, 0, 95)]
    assert len(anew) == 100
    assert {anew.count(row["prompt"]) for row in new} == {10}
    passes = [passes_over(count, TrainConfig(batch_size=8)) for count in (1, 32, 80, 120, 400, 3000)]
    assert passes == [15, 15, 15, 10, 3, 2]
    assert passes_over(40, TrainConfig(epochs=4.0)) == 4
    assert passes_over(40, TrainConfig(epochs=0.1)) == 1
    assert passes_over(40, TrainConfig(batch_size=8, steps=30)) == 6
    assert [least_rows(different, TrainConfig()) for different in (40, 120, 160, 1000)] == [600, 1800, 2400, 2400]
    assert least_rows(1000, TrainConfig(epochs=2.0)) == least_rows(1000, TrainConfig(steps=5)) == 0


def test_rows_of_a_job_have_one_shape(service):
    def rows_of():
        found = service.feedback.training_rows()
        return JobRows(service.feedback, sorted(found.new + found.held, key=lambda row: row.rowid))

    service.feedback.add(prompt="e", correction="f")
    assert list(rows_of()) == [{"prompt": "e", "completion": "f"}]
    service.feedback.add(messages=[{"role": "user", "content": "g"}], correction="h")
    made = rows_of()
    expected = [{"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
                for asked, answer in (("e", "f"), ("g", "h"))]
    assert list(made) == list(made) == expected  # they can be read again


@pytest.mark.slow
def test_feedback_is_never_in_memory_as_a_whole(service):
    """A piece may take 20 times its bytes as objects; all that wait may be 32 MiB as bytes."""
    pieces = 8
    for i in range(pieces):
        asked = {"role": "user", "content": f"turn the light {i}", "note": [[]] * 15_000}
        service.feedback.add(messages=[asked], correction="on")
    objectives()  # imports what is imported once, and is no feedback
    tracemalloc.start()
    try:
        note = json.loads(json.dumps([[]] * 15_000))
        of_one = tracemalloc.get_traced_memory()[0]
        del note
        tracemalloc.reset_peak()
        job = service.learner.begin()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    service.jobs.cancel(job.id)
    assert of_one > 8e5
    assert peak < 4 * of_one  # as JSON text, as objects, and as both again where a row is made of another


def test_a_job_has_its_new_rows_as_often_as_the_options_say(service):
    give(service, range(10))
    for epochs, times in ((2.0, 2), ("auto", 15)):
        service.jobs.train = replace(TRAIN, epochs=epochs)
        job = service.learner.begin()
        learned = (service.jobs.folder / job.id / TRAIN_ROWS).read_text().splitlines()
        service.jobs.cancel(job.id)
        service.jobs.wait(job.id, 60)
        until(lambda: not service.feedback.unsettled())
        assert len(learned) == 8 * times
        assert {learned.count(row) for row in learned} == {times}
