"""Training on another backend: everything that it computes and allocates goes through the contract."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from edgetune.backends.base import OPS
from edgetune.backends.cpu import Cpu
from edgetune.bench.train import random_rows
from edgetune.training.trainer import Trainer

OPTIONS: dict[str, Any] = {"rank": 4, "steps": 3, "batch_size": 2, "max_length": 24, "precision": "exact", "lr": 1e-2}


class Counting:
    """The CPU behind a counter of calls; it shares no class with it, and refuses arrays that it did not hand out."""

    def __init__(self, threads):
        self.cpu = Cpu(threads)
        self.calls: Counter[str] = Counter()
        self.allocated: list[int] = []
        self.uploaded: list[int] = []
        for name in OPS:
            setattr(self, name, self.counted(name))

    def counted(self, name):
        def call(*args: Any, **kwargs: Any):
            self.calls[name] += 1
            return getattr(self.cpu, name)(*args, **kwargs)

        return call

    @property
    def isa(self):
        return f"counted {self.cpu.isa}"

    @property
    def threads(self):
        return self.cpu.threads

    @property
    def working(self):
        return self.cpu.working

    @working.setter
    def working(self, threads):
        self.cpu.working = threads

    def products(self, precision):
        return self.cpu.products(precision)

    def peak(self, precision, backward=False):
        return self.cpu.peak(precision, backward)

    @property
    def scratch_bytes(self):
        return self.cpu.scratch_bytes

    def use_scratch(self, scratch):
        self.cpu.use_scratch(scratch)

    @property
    def records(self):
        return False

    def record(self, ops):
        return ops

    def tape(self):
        return None

    @property
    def is_paged(self):
        return True

    def allocate(self, nbytes):
        self.allocated.append(nbytes)
        return self.cpu.allocate(nbytes)

    def upload(self, mapped):
        self.uploaded.append(mapped.nbytes)
        return mapped.copy()  # as a device with its own memory would

    def synchronize(self):
        self.cpu.synchronize()

    def place(self, array):
        return array.copy()

    def empty(self, shape, dtype=np.float32):
        return self.cpu.empty(shape, dtype)


def trained(model, backend=None):
    trainer = Trainer(model, ops=backend, threads=2, **OPTIONS)
    trainer.add_examples(random_rows(416, 6, 20, seed=0))
    trainer.train()
    return trainer, trainer.arena.flat("lora").tobytes()


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_another_backend_trains_the_same_bytes(architecture, tiny_models):
    counting = Counting(2)
    trainer, adapter = trained(tiny_models[architecture], counting)
    assert adapter == trained(tiny_models[architecture])[1]
    assert counting.allocated == [trainer.plan.arena_bytes]
    assert sorted(counting.uploaded)[-1] == max(t.data.nbytes for t in trainer.model.weights.values())
    blocks = trainer.model.shape.n_layer
    assert counting.calls["attention_backward"] == OPTIONS["steps"] * blocks  # two rows fit into a micro-batch
    assert counting.calls["adamw"] == 2 * OPTIONS["steps"]  # A and B
    assert counting.calls["head_backward"] == OPTIONS["steps"]
    assert trainer.record()["isa"] == f"counted {Cpu(1).isa}"


def test_what_a_backend_computes_is_what_is_learned(tiny_llama):
    """A device whose optimizer does nothing leaves the adapter as it began: no product goes past the backend."""
    idle = Counting(2)
    idle.adamw = lambda *_: None
    trainer, adapter = trained(tiny_llama, idle)
    assert adapter == Trainer(tiny_llama, threads=2, **OPTIONS).arena.flat("lora").tobytes()
    assert np.any(trainer.arena.flat("dlora"))
