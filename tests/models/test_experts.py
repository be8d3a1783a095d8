"""The gradient through a router, where transformers has no such model: by finite differences of the loss."""

import numpy as np
import pytest
from tiny import write_tiny

from edgetune.bench.train import random_rows
from edgetune.data.packing import collate
from edgetune.models.decoder import Decoder
from edgetune.training.trainer import Trainer

STEP = 1e-4  # no token takes another expert; with 1e-3 one did for 5 of 24 sets of rows, with 3e-4 for none


@pytest.mark.parametrize("architecture", ["lfm2moe", "qwen3moe"])
def test_the_gradient_is_the_slope_of_the_loss(architecture, tmp_path):
    model = write_tiny(tmp_path / "tiny.gguf", architecture)
    trainer = Trainer(model, rank=4, batch_size=4, max_length=24, precision="exact", threads=1, steps=3, lr=0.02)
    trainer.add_examples(random_rows(416, 8, 20, seed=1))
    trainer.train()  # so that A has a gradient
    decoder = trainer.decoder
    assert isinstance(decoder, Decoder)
    batch = collate(trainer.examples[:4])
    values = decoder.arena.flat("lora")
    gradient = decoder.arena.flat("dlora")
    gradient.fill(0)
    decoder.forward(batch, keep=True)
    decoder.backward(batch, np.ones(batch.supervised.size, np.float32))
    begin = values.copy()
    direction = gradient / np.linalg.norm(gradient)

    def loss(step: float) -> float:
        values[:] = begin + np.float32(step) * direction
        return -float(decoder.score(batch).astype(np.float64).sum())

    slope = (loss(STEP) - loss(-STEP)) / (2 * STEP)
    assert slope == pytest.approx(float(np.linalg.norm(gradient)), rel=0.01)
