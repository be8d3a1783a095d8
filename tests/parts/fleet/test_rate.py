"""The learning rate of a device's round, where the task leaves it open."""

from __future__ import annotations

from dataclasses import replace

import pytest
from json_lines import write_lines

from edgetune.parts.fleet.rounds.lead import make_task, write_next
from edgetune.parts.fleet.rounds.member import train_round
from edgetune.parts.fleet.rounds.options import RoundOptions
from edgetune.parts.fleet.rounds.reach import rate_of, share_of
from edgetune.parts.fleet.rounds.task import open_task
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig

ROUND = TrainConfig(epochs=1.0, batch_size=1, schedule="constant", anchors=0, max_length=64, precision="exact")


def rows(folder, count):
    return write_lines(folder / f"{count}.jsonl",
                       [{"prompt": f"say {i}", "completion": "yes"} for i in range(count)])


@pytest.mark.parametrize(("family", "count", "epochs", "expected"), [
    ("lora", 3, 1.0, 4e-3), ("lora", 8, 1.0, 4e-3), ("lora-fb", 8, 1.0, 4e-3), ("lora-fa", 8, 1.0, 8e-3),
    ("lora", 32, 1.0, 2e-3), ("lora", 8, 4.0, 2e-3), ("lora-fa", 32, 1.0, 4e-3), ("lora", 500, 1.0, 1e-3)])
def test_short_rounds_take_large_steps(tmp_path, family, count, epochs, expected):
    config = replace(ROUND, family=TrainConfig(family=family).family, epochs=epochs)
    assert rate_of(config, rows(tmp_path, count)) == pytest.approx(expected)


def test_a_rate_that_is_given_is_taken(tmp_path):
    assert rate_of(replace(ROUND, lr=3e-4), rows(tmp_path, 8)) == 3e-4
    assert rate_of(replace(ROUND, epochs="auto"), rows(tmp_path, 8)) == 1e-3
    assert rate_of(replace(ROUND, steps=128), rows(tmp_path, 8)) == pytest.approx(1e-3)
    (tmp_path / "text.txt").write_text("a text that is divided")
    assert rate_of(ROUND, tmp_path / "text.txt") == 1e-3


def test_the_rate_falls_over_the_planned_rounds():
    shares = [share_of(5, number) for number in range(1, 8)]
    assert shares == pytest.approx([1.0, 0.7625, 0.525, 0.2875, 0.05, 0.05, 0.05])
    assert [share_of(0, number) for number in (1, 100)] == [1.0, 1.0]
    assert share_of(1, 1) == 1.0


def test_a_round_trains_with_it_and_the_next_in_another_order(bundle, tmp_path):
    make_task(bundle, tmp_path / "one", ROUND, RoundOptions(aggregation="frozen-a", planned_rounds=3))
    task = open_task(tmp_path / "one", bundle)
    steps = []
    calls = RunCallbacks(lambda event: steps.append(event) if event["event"] == "step" else None)
    train_round(task, bundle, rows(tmp_path, 16), tmp_path / "answer", "x", held_out="none", callbacks=calls, threads=1,
                memory="")
    assert len(steps) == 16
    assert steps[-1]["lr"] == pytest.approx(8e-3 * 0.5**0.5)
    write_next(task, bundle, [tmp_path / "answer"], tmp_path / "two")
    after = open_task(tmp_path / "two", bundle)
    assert after.config.seed == task.config.seed + 1
    steps.clear()
    train_round(after, bundle, rows(tmp_path, 16), tmp_path / "other", "x", held_out="none", callbacks=calls, threads=1,
                memory="")
    assert steps[-1]["lr"] == pytest.approx(8e-3 * 0.5**0.5 * 0.525)
