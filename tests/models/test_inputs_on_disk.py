"""--recompute disk: the inputs of blocks are in a file; the adapter is that of --recompute block, to the byte."""

import resource

import numpy as np
import pytest
from encoders import WORDS, tiny_bert, write_encoder
from labelled import classes, documents, open_trainer, our_gradient, set_random
from tiny import write_tiny

from edgetune.bench.train import random_rows
from edgetune.data.packing import collate
from edgetune.errors import DiskError
from edgetune.training.trainer import Trainer

OPTIONS = {"steps": 3, "batch_size": 4, "max_length": 64, "threads": 1, "lr": 0.01}


def trained(model, recompute, **options):
    trainer = Trainer(model, recompute=recompute, **{**OPTIONS, **options})
    trainer.add_examples(random_rows(416, 8, 50, 1))
    trainer.train()
    return trainer


@pytest.mark.dev
@pytest.mark.parametrize("options", [{}, {"micro_batch": 64}, {"weights": "streamed"}, {"blocks": "last:2"},
                                     {"precision": "int8"}, {"family": "houlsby"}])
@pytest.mark.parametrize("architecture", ["llama", "lfm2"])
def test_the_adapter_is_the_same(tmp_path, architecture, options):
    model = write_tiny(tmp_path / "tiny.gguf", architecture, formats="Q8_0", n_blocks=4)
    found = trained(model, "disk", **options)
    wanted = trained(model, "block", **options)
    np.testing.assert_array_equal(found.decoder.arena.flat("lora"), wanted.decoder.arena.flat("lora"))
    blocks = 2 if "blocks" in options else 4
    assert found.plan.disk_bytes == blocks * found.plan.run.max_tokens * 64 * 4
    saved = wanted.plan.arena_bytes - found.plan.arena_bytes
    assert saved == (blocks - 1) * found.plan.run.max_tokens * 64 * 4


def test_an_encoder_has_the_same_gradient(tmp_path):
    model = write_encoder(tmp_path / "bert.gguf", tiny_bert(), WORDS)
    batch = collate(documents([9, 4, 17]))
    found = []
    for recompute in ("disk", "block"):
        trainer = open_trainer(model, classes(3), recompute=recompute)
        set_random(trainer)
        found.append(our_gradient(trainer, batch, np.ones(3, np.float32))[1])
    np.testing.assert_array_equal(*found)
    assert np.abs(found[0]).max() > 0


def test_a_disk_without_room_says_so(tmp_path):
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DiskError, match=r"cannot write .*inputs"):
            trained(model, "disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
