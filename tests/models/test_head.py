"""A decoder's head where log p is wanted before the gradient: the same bytes as in one pass, and no more products."""

import numpy as np
import pytest

from edgetune.data.packing import Example, collate
from edgetune.models.stream import HEAD_TOKENS
from edgetune.training.trainer import Trainer

OPTIONS = {"steps": 1, "batch_size": 2, "max_length": HEAD_TOKENS, "threads": 2}


@pytest.fixture
def some_pass(tiny_models):
    """Opens a model, and returns its trainer, a batch of more tokens than the head takes at once, and its signal."""
    def open_model(architecture, precision):
        trainer = Trainer(tiny_models[architecture], precision=precision, **OPTIONS)
        rng = np.random.default_rng(0)
        trainer.arena.flat("lora")[:] = rng.standard_normal(trainer.arena.flat("lora").size, np.float32) * 0.02
        rows = [Example(rng.integers(0, 200, n).astype(np.int32), np.ones(n, np.float32)) for n in (250, 40)]
        batch = collate(rows, share=False)
        assert batch.supervised.size > HEAD_TOKENS
        return trainer, batch, rng.standard_normal(batch.supervised.size, np.float32)
    return open_model


def passed_back(trainer, batch, a):
    """log p and the gradient, after `forward`, and perhaps `head_forward`."""
    gradient = trainer.arena.flat("dlora")
    gradient.fill(0)
    logp = trainer.decoder.backward(batch, a).copy()
    return logp.tobytes(), gradient.tobytes()


@pytest.mark.parametrize("precision", ["exact", "fast", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "gemma4"])  # gemma4 caps logits
def test_log_p_before_the_gradient_changes_no_byte(architecture, precision, some_pass, monkeypatch):
    trainer, batch, a = some_pass(architecture, precision)
    trainer.decoder.forward(batch, keep=True)
    wanted = passed_back(trainer, batch, a)
    entries = []
    head_backward = trainer.decoder.ops.head_backward

    def noted(*args, **kwargs):
        entries.append(args[10])
        head_backward(*args, **kwargs)

    monkeypatch.setattr(trainer.decoder.ops, "head_backward", noted)
    monkeypatch.setattr(trainer.decoder.ops, "head_forward", None)
    trainer.decoder.forward(batch, keep=True)
    logp = trainer.decoder.head_forward(batch).tobytes()
    assert passed_back(trainer, batch, a) == wanted
    assert logp == wanted[0]
    n = trainer.model.shape.n_vocab
    assert entries == [(0, n), (0, n), (n, n), (n, n)]


def test_sums_of_an_earlier_pass_are_not_taken(some_pass):
    """Where the adapter has changed since."""
    trainer, batch, a = some_pass("llama", "exact")
    trainer.decoder.forward(batch, keep=True)
    trainer.decoder.head_forward(batch)
    trainer.arena.flat("lora")[:] *= 2
    trainer.decoder.forward(batch, keep=True)
    found = passed_back(trainer, batch, a)
    trainer.decoder.forward(batch, keep=True)
    assert passed_back(trainer, batch, a) == found
    trainer.decoder.forward(batch, keep=True)
    trainer.decoder.head_forward(batch)
    assert passed_back(trainer, batch, a) == found
