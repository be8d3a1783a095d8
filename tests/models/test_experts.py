"""The gradient through a router, where transformers has no such model: by finite differences of the loss."""

import pytest
from slopes import slope_and_norm
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
    assert (batch.supervised_weights == 1).all()
    slope, norm = slope_and_norm(decoder, batch, STEP)
    assert slope == pytest.approx(norm, rel=0.01)
