"""Passes that are recorded and begun as a whole on the emulated GPU: the same bytes as op by op."""

from typing import Any

import numpy as np
import pytest
from emulated import HERE, WHY_NOT, cuda, put

from edgetune.bench.train import random_rows
from edgetune.errors import DeviceError, Interrupted
from edgetune.llamacpp.sampling import Sampling
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.models import recorded as repeated
from edgetune.models.recorded import Repeated
from edgetune.serving.rollouts.texts import Engine, TokenPrompts, answers
from edgetune.training.trainer import Trainer

pytestmark = pytest.mark.skipif(HERE is None, reason=WHY_NOT)
OPTIONS: dict[str, Any] = {"rank": 4, "steps": 5, "batch_size": 2, "max_length": 20, "lr": 1e-2, "threads": 1,
                           "precision": "exact"}


@pytest.fixture(autouse=True)
def small_granule(monkeypatch):
    """Batches are filled up to a multiple of 16 tokens, as an emulated thread is slow."""
    monkeypatch.setattr(repeated, "GRANULE", 16)


def opened(bundle, **options: Any):
    """A trainer on rows of 12 to 18 tokens, and its driver."""
    ops, driver = cuda()
    trainer = Trainer(bundle, ops=ops, **OPTIONS | options)
    for length in range(12, 20, 2):
        trainer.add_examples(random_rows(trainer.model.structure.n_tokens, 1, length, seed=length))
    return trainer, driver


def learned(trainer):
    return [result.loss for result in trainer.train()], trainer.arena.flat("lora").tobytes()


@pytest.fixture
def one_by_one(monkeypatch):
    """A context within which nothing is recorded, with batches filled up as where it is."""
    def within(call):
        with monkeypatch.context() as patch:
            patch.setattr(Repeated, "run", lambda _self, _key, ops: ops())
            return call()
    return within


def test_what_is_recorded_runs_when_it_is_begun_and_reads_what_stands_there_then():
    ops, driver = cuda()
    x = put(ops, np.full(64, 2.0, np.float32))
    again = ops.record(lambda: ops.scale(x, 3.0))
    ops.synchronize()
    assert (x == 2.0).all()
    again()
    again()
    ops.synchronize()
    assert (x == 18.0).all()
    x[:] = 1.0
    again()
    ops.synchronize()
    assert (x == 3.0).all()
    assert (driver.recorded, driver.begun) == (1, 3)


def test_what_fails_while_it_is_recorded_is_not_begun_and_ends_the_recording():
    ops, _ = cuda()
    x = put(ops, np.ones(64, np.float32))

    def stopped():
        ops.scale(x, 3.0)
        raise Interrupted("stopped")
    with pytest.raises(Interrupted):
        ops.record(stopped)
    ops.scale(x, 5.0)
    ops.synchronize()
    assert (x == 5.0).all()
    with pytest.raises(DeviceError):  # nothing can be waited for there
        ops.record(ops.synchronize)


@pytest.mark.parametrize("options", [{}, {"precision": "fast"}, {"recompute": "block"},
                                     {"batch_size": 4, "micro_batch": 2}], ids=str)
def test_training_has_the_same_bytes_as_op_by_op(options, bundle, one_by_one):
    trainer, driver = opened(bundle, **options)
    found = learned(trainer)
    assert driver.recorded >= 2
    assert driver.begun > driver.recorded
    plain, other = opened(bundle, **options)
    assert one_by_one(lambda: learned(plain)) == found
    assert other.recorded == 0
    assert len(driver.found) == len(other.found)


def test_more_sizes_than_are_kept_have_the_same_bytes(bundle, one_by_one, monkeypatch):
    plain, _ = opened(bundle)
    expected = one_by_one(lambda: learned(plain))
    monkeypatch.setattr(repeated, "MOST", 1)
    trainer, driver = opened(bundle)
    assert learned(trainer) == expected
    assert driver.begun == driver.recorded


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"weights": "streamed"}], ids=str)
def test_passes_that_differ_are_not_recorded(options, bundle):
    trainer, driver = opened(bundle, **options)
    trainer.train()
    assert driver.recorded == 0


def test_the_base_and_the_adapter_are_told_apart(bundle):
    trainer, driver = opened(bundle)
    trainer.train()
    rows = random_rows(trainer.model.structure.n_tokens, 2, 16, seed=9)

    def base():
        with trainer.decoder.linear.off():
            return trainer.loss(rows)[0]
    found = [(trainer.loss(rows)[0], base()) for _ in range(4)]
    assert len(set(found)) == 1
    assert found[0][0] != found[0][1]
    assert driver.begun > driver.recorded


def test_a_run_that_is_stopped_while_a_pass_is_recorded_goes_on(bundle, one_by_one):
    plain, _ = opened(bundle)
    expected = one_by_one(lambda: learned(plain))
    for after in range(6):  # calls of the second step, whose passes are recorded
        trainer, driver = opened(bundle)
        trainer.step()
        left = iter([False] * after)
        with pytest.raises(Interrupted):
            trainer.step(should_stop=lambda: next(left, None) is not False)  # noqa: B023
        trainer.train()
        assert trainer.arena.flat("lora").tobytes() == expected[1]
        assert driver.begun > 0


def test_answers_are_the_same_as_op_by_op(bundle, one_by_one, monkeypatch):
    drivers = []

    def open_cuda(_say):
        ops, driver = cuda()
        drivers.append(driver)
        return ops
    monkeypatch.setattr("edgetune.backends.opening.open_cuda", open_cuda)
    prompts = [[1, 5, 9, 40], [1, 5, 9, 41, 7], [3]]
    asked = TokenPrompts(prompts, [9, 9, 3], 7, Sampling(temperature=1.0, seed=3, top_k=0, top_p=1.0, min_p=0.0),
                         ends=False)

    def drawn():
        engine = Engine(2**30, "1G", precision="exact", threads=1, backend="cuda")
        made = answers(bundle.gguf, Tokenizer(bundle.gguf), {}, asked, engine)
        return sorted((a.rollout.prompt, a.rollout.sample, a.rollout.tokens.tolist()) for a in made)
    found = drawn()
    assert drivers[0].begun > drivers[0].recorded > 0
    assert one_by_one(drawn) == found
    assert drivers[1].recorded == 0
