"""Training on another backend: everything that it computes and allocates goes through the contract."""

from __future__ import annotations

import json
import logging
from collections import Counter
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from edgetune.backends import opening
from edgetune.backends.base import OPS
from edgetune.backends.cpu import Cpu
from edgetune.bench.train import random_rows
from edgetune.cli.app import Commands, json_option
from edgetune.errors import UsageError
from edgetune.training.trainer import Trainer

OPTIONS: dict[str, Any] = {"rank": 4, "steps": 3, "batch_size": 2, "max_length": 24, "precision": "exact", "lr": 1e-2}
SAID = "computing on the GPU (cuda sm_87); --backend cpu computes on the CPU"


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


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setattr(opening, "open_cuda", lambda _say: SimpleNamespace(isa="cuda sm_87"))


def test_without_a_gpu_auto_is_silent_and_cuda_is_refused(monkeypatch):
    monkeypatch.setattr("edgetune.backends.opening.DRIVER", "libcuda-that-is-missing.so")
    said: list[str] = []
    assert opening.open_backend("auto", 1, said.append).threads == 1
    assert said == []
    with pytest.raises(UsageError, match="--backend cuda: no NVIDIA driver is installed"):
        opening.open_backend("cuda", 1, said.append)


@pytest.mark.usefixtures("with_gpu")
def test_the_library_prints_nothing_and_logs_what_computes(capfd, caplog):
    caplog.set_level(logging.WARNING)  # another test may have asked for more
    opening.open_backend("auto", 1)
    assert caplog.record_tuples == []  # a program that does not ask is told of warnings alone
    with caplog.at_level(logging.INFO, "edgetune"):
        opening.open_backend("auto", 1)
    assert caplog.record_tuples == [("edgetune.backends", logging.INFO, SAID)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_command_says_what_computes_on_stderr(flags):
    group = Commands("edgetune")

    @group.command("compute")
    @json_option
    def compute(as_json):
        opening.open_backend("auto", 1)
        click.echo(f"json: {as_json}")

    for _ in range(2):  # a line each time
        done = CliRunner().invoke(group, ["compute", *flags])
        assert done.stdout == f"json: {bool(flags)}\n"
        assert done.stderr == (json.dumps({"event": "log", "line": SAID}) if flags else SAID) + "\n"
    assert not logging.getLogger("edgetune.backends").handlers
    assert not logging.getLogger("edgetune.backends").level
