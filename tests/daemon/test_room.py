"""The memory of a job within the daemon's: weights stay in memory or are streamed, whichever fits."""

import pytest
from tiny import write_tiny

from edgetune.daemon.jobs.room import MIB, Room
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.errors import BudgetError, TooMuchError, UsageError
from edgetune.training.config import TrainConfig

NEEDS = {"resident": 187, "streamed": 98}  # MiB


def train(config, _shortens=False):
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
    (126, 31, TrainConfig(), ("187 MiB", "300 MiB", "126 MiB are left", "--memory 361M")),
    (90, 92, TrainConfig(), ("98 MiB", "300 MiB", "92 MiB are left", "--memory 306M")),
    (126, 200, TrainConfig(weights="resident"), ("187 MiB", "126 MiB are left", "--memory 361M"))])
def test_what_does_not_fit_is_said_in_the_daemons_numbers(resident, streamed, asked, numbers):
    with pytest.raises(UsageError) as caught:
        Room(300 * MIB, resident * MIB, streamed * MIB).fitting(asked, train)
    for number in numbers:
        assert number in str(caught.value)
    with pytest.raises(BudgetError, match="does not fit"):  # a job that asks for too little itself
        Room(900 * MIB, 500 * MIB, 400 * MIB).fitting(TrainConfig(memory="50M"), train)


@pytest.mark.parametrize(("later", "error"), [(70, TooMuchError), (50, UsageError)])
def test_a_job_waits_for_memory_that_answers_have_now(later, error):
    with pytest.raises(error) as caught:
        Room(300 * MIB, 126 * MIB, 31 * MIB, later * MIB).fitting(TrainConfig(), train)
    assert type(caught.value) is error
    for number in ("187 MiB", "300 MiB", "126 MiB are left"):
        assert number in str(caught.value)


def test_memory_that_the_daemon_has_too_counts_once():
    room = Room(300 * MIB, 180 * MIB, 90 * MIB).wider(8 * MIB)
    assert room.fitting(TrainConfig(), train) == ("resident", "188M")


def test_a_daemon_with_little_memory_has_a_context_that_leaves_room_for_a_job(tmp_path):
    """As many tokens as are named, or else as many as fit. Its keys and values take 32 KiB a token."""
    shape = {"n_context": 8192, "d_model": 128, "n_blocks": 16, "n_heads": 8, "n_kv_heads": 8, "head_width": 64}
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0", **shape)
    sizes = {}
    for memory, context in (("2G", 0), ("100M", 0), ("100M", 2048)):
        config = DaemonConfig(state=str(tmp_path / "state"), memory=memory, context=context, threads=1)
        with Service(model, config) as service:
            sizes[memory, context] = service.served.context
    assert sizes["2G", 0] == 4096
    assert sizes["100M", 0] == 1024
    assert sizes["100M", 2048] == 2048


def test_rows_are_shortened_only_where_streamed_weights_leave_too_little():
    tried = []

    def refuse(config, shortens):
        tried.append((config.weights, shortens))
        raise BudgetError("this does not fit", "give it more", 900 * MIB)

    with pytest.raises(UsageError):
        Room(300 * MIB, 200 * MIB, 100 * MIB).fitting(TrainConfig(max_length="auto"), refuse)
    assert tried == [("resident", False), ("streamed", False), ("resident", True), ("streamed", True)]
    tried.clear()
    with pytest.raises(UsageError):
        Room(300 * MIB, 200 * MIB, 100 * MIB).fitting(TrainConfig(max_length=64), refuse)
    assert tried == [("resident", False), ("streamed", False)]
