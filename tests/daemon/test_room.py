"""The memory of a job within the daemon's: weights stay in memory or are streamed, whichever fits."""

import pytest

from edgetune.daemon.jobs.room import MIB, Room
from edgetune.errors import BudgetError, UsageError
from edgetune.training.config import TrainConfig

NEEDS = {"resident": 187, "streamed": 98}  # MiB


def train(config):
    needed = NEEDS[config.weights] * MIB
    if config.memory_bytes(0) < needed:
        raise BudgetError("this does not fit", "give it more", needed)
    return config.weights, config.memory


@pytest.mark.parametrize(("resident", "streamed", "asked", "found"), [
    (190, 100, TrainConfig(), ("resident", "190M")), (180, 100, TrainConfig(), ("streamed", "100M")),
    (190, 100, TrainConfig(weights="streamed"), ("streamed", "100M")),
    (500, 400, TrainConfig(memory="200M"), ("resident", "200M")),
    (500, 400, TrainConfig(memory="100M"), ("streamed", "100M"))])
def test_what_fits_is_taken(resident, streamed, asked, found):
    assert Room(300 * MIB, resident * MIB, streamed * MIB).fitting(asked, train) == found


@pytest.mark.parametrize(("resident", "streamed", "asked", "numbers"), [
    (126, 31, TrainConfig(), ("187 MiB", "300 MiB", "126 are left", "--memory 361M")),
    (90, 92, TrainConfig(), ("98 MiB", "300 MiB", "92 are left", "--memory 306M")),
    (126, 200, TrainConfig(weights="resident"), ("187 MiB", "126 are left", "--memory 361M"))])
def test_what_does_not_fit_is_said_in_the_daemons_numbers(resident, streamed, asked, numbers):
    with pytest.raises(UsageError) as caught:
        Room(300 * MIB, resident * MIB, streamed * MIB).fitting(asked, train)
    for number in numbers:
        assert number in str(caught.value)
    with pytest.raises(BudgetError, match="does not fit"):  # a job that asks for too little itself
        Room(900 * MIB, 500 * MIB, 400 * MIB).fitting(TrainConfig(memory="50M"), train)
