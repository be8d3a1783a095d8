"""Options: each is refused outside its range, in one sentence with value and limit."""

import pytest

from edgetune.errors import UsageError
from edgetune.training.config import TARGETS, TrainConfig


@pytest.mark.parametrize(("options", "words"), [
    ({"rank": 0}, ("rank", "0", "1")), ({"dropout": 1.0}, ("dropout", "1.0", "0.95")),
    ({"lr": float("nan")}, ("lr", "not a number")), ({"lr": -1.0}, ("lr", "-1")),
    ({"schedule": "step"}, ("schedule", "'step'", "cosine")), ({"targets": "q_proj,lm_head"}, ("lm_head", "q_proj")),
    ({"targets": ""}, ("targets", "all")), ({"blocks": "middle:3"}, ("middle:3", "last:K")),
    ({"epochs": 0.0}, ("epochs", "steps")), ({"checkpoint_every": "soon"}, ("checkpoint-every", "'soon'", "5m")),
    ({"checkpoint_every": "-1s"}, ("checkpoint-every", "'-1s'", "never")),
    ({"max_length": 1}, ("max-length", "1", "2"))])
def test_wrong_options_are_refused_in_one_sentence(options, words):
    with pytest.raises(UsageError) as caught:
        TrainConfig(**options).check()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_targets_and_blocks():
    config = TrainConfig(targets="v_proj, q_proj", blocks="last:2").check()
    assert config.target_names() == ("q_proj", "v_proj")
    assert config.block_range(5) == range(3, 5)
    assert TrainConfig(blocks="first:2").block_range(5) == range(2)
    assert TrainConfig().target_names() == TARGETS
    with pytest.raises(UsageError, match="1 <= K <= 5"):
        TrainConfig(blocks="last:6").block_range(5)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1s", 1), ("0.5s", 0.5), ("5m", 300), ("2h", 7200),
                                               ("1d", 86400), ("never", float("inf")), ("0", float("inf"))])
def test_checkpoint_times_are_read(text, seconds):
    assert TrainConfig(checkpoint_every=text).check().checkpoint_seconds() == seconds
