"""What is said of a run's losses: each kind at its limits, with the numbers and a way out."""

import math
from dataclasses import replace

import pytest
from counting import OPTIONS, dataset

from edgetune.training.config import TrainConfig
from edgetune.training.run import run
from edgetune.training.verdict import Course, judge

NAN = float("nan")
MORE = "edgetune resume out --epochs +4"


def course(*history, start=0, total=None, **rest):
    """Kept is the lowest of `history`, as where its rows agree."""
    steps = history[-1][0] if history else 8
    finite = [(loss, step) for step, loss in history if math.isfinite(loss)]
    kept = rest.pop("kept", min(finite, default=(0.0, start))[1])
    return Course(history, start, rest.pop("steps", steps), total or steps, kept, 5e-4, MORE, **rest)


@pytest.mark.parametrize(("losses", "kind", "step", "words"), [
    # the README's first run: one measurement after the first, far lower
    ([(0, 3.38), (8, 1.80)], "still falling", 8, ["3.38 to 1.80", "in the last 8 steps", MORE]),
    ([(0, 3.38), (4, 0.5), (8, 0.4)], "still falling", 8, ["3.38 to 0.4", "from 0.5 in the last 4 steps"]),
    # the last interval lowers it by 2 % only, or by less than a hundredth of the fall
    ([(0, 3.38), (4, 0.408), (8, 0.4)], "learned", 8, ["3.38 to 0.4", "in 8 of 8 steps"]),
    ([(0, 3.0), (4, 0.02), (8, 0.005)], "learned", 8, ["0.005"]),
    # it rises again: by half, by a few per cent, by much of very little
    ([(0, 3.38), (4, 0.2), (8, 0.3)], "overfitted", 4, ["from step 4 on", "0.2, and was 0.3 after step 8"]),
    ([(0, 3.38), (4, 0.2), (8, 0.204)], "learned", 4, ["in 4 of 8 steps"]),
    ([(0, 3.38), (4, 0.001), (8, 0.002)], "learned", 4, []),
    ([(0, 3.38), (4, 0.2), (8, NAN)], "overfitted", 4, ["was nan after step 8"]),
    # nothing is better than before
    ([(0, 3.38), (4, 9.0), (8, 16.57)], "worse", 0, ["3.38 before the first step and 16.57 after step 8", "now 0.0005",
                                                     "edgetune data check"]),
    ([(0, 3.38), (8, 3.38)], "worse", 0, ["No better than before"]),
    ([(0, 3.38), (4, NAN), (8, NAN)], "worse", 0, ["nan after step 8"]),
    ([(0, NAN), (8, NAN)], "worse", 0, []),
    ([(0, NAN), (4, 2.0), (8, 2.0)], "learned", 4, ["from nan to 2.00"]),
    # a loss may be below 0, as objectives other than imitation have it
    ([(0, 0.0), (4, -0.5), (8, -0.9)], "still falling", 8, ["0 to -0.9"]),
    ([(0, 0.0), (4, -0.9), (8, -0.5)], "overfitted", 4, []),
    # other rows were held out in mid-run, or a run ends before a step
    ([(6, 2.0), (8, 1.0)], "unmeasured", 8, ["was not measured on these rows before"]),
    ([(0, 2.0)], "unmeasured", 0, ["was not measured on these rows before"]),
])
def test_by_held_out_losses(losses, kind, step, words):
    found = judge(course(*losses))
    assert (found.kind, found.step) == (kind, step)
    assert all(word in found.sentence for word in words), found.sentence
    assert found.sentence.endswith(".")
    assert "\n" not in found.sentence


def test_a_run_that_ended_by_itself_was_not_still_falling():
    found = judge(course((0, 3.0), (4, 0.2), (8, 0.3), total=40))
    assert found.kind == "overfitted"
    found = judge(course((0, 3.0), (4, 0.2), (8, 0.2), total=40))
    assert (found.kind, found.step) == ("learned", 4)
    assert "so it ended after step 8" in found.sentence


def test_a_leg_is_measured_from_where_it_began():
    found = judge(course((40, 0.5), (48, 0.6), start=40))
    assert (found.kind, found.step) == ("worse", 40)
    assert judge(course((40, 0.5), (48, 0.3), start=40)).kind == "still falling"
    assert "0.5 to 0.3 in 4 of 8 steps" in judge(course((40, 0.5), (44, 0.3), (48, 0.3), start=40)).sentence


@pytest.mark.parametrize(("learned", "kind", "words"), [
    ((3.38, 0.4), "unmeasured", ["3.38 -> 0.4", "no rows were held out", "--eval"]),
    ((3.38, 16.57), "worse", ["3.38 in the first steps and 16.57", "now 0.0005"]),
    ((3.38, NAN), "worse", []),
    ((0.05, 0.12), "unmeasured", []),  # batches differ by so much
    (None, "unmeasured", ["Nothing was trained"]),
])
def test_without_held_out_rows(learned, kind, words):
    found = judge(course(learned=learned))
    assert (found.kind, found.step) == (kind, 8)
    assert all(word in found.sentence for word in words), found.sentence


def test_of_a_real_run(bundle, tmp_path):
    """Measured before, and falling to the end; then the same without held-out rows."""
    config = TrainConfig(**OPTIONS, eval_every=4)
    record = run(bundle, dataset(24), tmp_path / "measured", config, held_out=dataset(6, 1))
    assert record["verdict"]["kind"] == "still falling"
    assert f"edgetune resume {tmp_path}/measured --epochs +4" in record["verdict"]["sentence"]
    record = run(bundle, dataset(24), tmp_path / "unmeasured", replace(config, eval_every=0))
    assert record["verdict"]["kind"] == "unmeasured"
    assert record["held_out"] is None


def test_of_a_real_run_whose_loss_rises(bundle, tmp_path):
    """One token again and again, and at the end what nobody could have learned."""
    data = dataset(48)
    for example in data.examples[:28]:
        example.tokens[:] = 5
    record = run(bundle, data, tmp_path / "out", TrainConfig(**OPTIONS, shuffle=False))
    assert (record["verdict"]["kind"], record["verdict"]["step"]) == ("worse", 12)


def test_no_reward_is_zero():
    assert course(of_rewards=True).number(0.0) == "0"
    assert course(of_rewards=True).number(-0.125) == "0.125"
