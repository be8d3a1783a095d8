"""The seconds that a grader may take for an answer: beyond that it is worth nothing, and soon the grader is refused."""

import time

import pytest

from edgetune.errors import EdgetuneError
from edgetune.evaluation.graders.base import MAX_LATE, read_grader, set_time_limit
from edgetune.evaluation.graders.sample import Sample

BACKTRACKS = {"type": "regex", "name": "slow", "pattern": "(a+)+$"}
HANGS = Sample("a" * 40 + "b")


@pytest.fixture
def limited():
    set_time_limit(0.2)
    yield
    set_time_limit(0)


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("written", [
    BACKTRACKS, {"type": "multi", "name": "both", "graders": {"slow": BACKTRACKS}, "calculate_output": "slow"}])
def test_an_answer_that_takes_longer_is_worth_nothing(written):
    grader = read_grader(written)
    started = time.monotonic()
    late, good = grader.grade([HANGS, Sample("aaa")], [{}, {}])
    assert time.monotonic() - started < 10
    assert (late.reward, good.reward) == (0.0, 1.0)
    assert any("unresponsive_reward_error" in name for name in late.errors)


@pytest.mark.usefixtures("limited")
def test_a_grader_that_does_so_again_is_refused_by_name():
    with pytest.raises(EdgetuneError, match=f"slow.*0.2 s.*{MAX_LATE}"):
        read_grader(BACKTRACKS).grade([HANGS] * MAX_LATE, [{}] * MAX_LATE)
