"""An adapter family that the package does not know, trained, saved, stopped and resumed.

Sparse trains biases, most of which a proximal step after the optimizer's makes 0: no low-rank pairs, so that our own
engine serves what it leaves. It is a Family and its Carved in this file; nothing else knows them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from commands import run as command

from edgetune.adapters import base
from edgetune.adapters.base import OWN_ENGINE, Artifact, Carved, Family, Frozen, Group, Shapes, slices
from edgetune.adapters.store import open_adapter, read_run
from edgetune.backends.arena import Buffer
from edgetune.bench.train import random_rows
from edgetune.daemon.jobs import recipe
from edgetune.data.dataset import Dataset
from edgetune.errors import EdgetuneError, Interrupted, MismatchError, UsageError
from edgetune.evaluation.served import served_loss
from edgetune.options import option
from edgetune.serving.llama import LlamaModel
from edgetune.training import checkpoint
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig, train_options
from edgetune.training.run import run
from edgetune.training.trainer import Trainer

OPTIONS: dict[str, Any] = {"batch_size": 3, "max_length": 24, "precision": "exact", "threads": 2, "lr": 0.05}


@dataclass(frozen=True)
class Sparse(Family):
    """A bias [N] a projection, after the proximal step of the lasso: soft thresholds of lr * shrink."""

    name: ClassVar[str] = "sparse"
    served_by: ClassVar[str] = OWN_ENGINE
    shrink: float = option(0.2, "How fast what does not help becomes 0.", low=0.0)

    def parameters(self, shapes: Shapes) -> list[Group]:
        return [Group("biases", sum(n for n, _ in shapes.values()), decay=False)]

    def state(self, shapes: Shapes) -> list[Buffer]:  # noqa: ARG002
        return [Buffer("steps_at_zero", (1,), "run")]

    def carve(self, shapes: Shapes, arena: Any, ops: Any, seed: int) -> CarvedSparse:  # noqa: ARG002
        return CarvedSparse(self, shapes, arena, ops)


class CarvedSparse(Carved):
    def __init__(self, family: Sparse, shapes: Shapes, arena: Any, ops: Any) -> None:
        self.family = family
        self.ops = ops
        self.flat = arena.flat("lora")
        self.at_zero = arena.flat("steps_at_zero")
        self.flat[:] = 0
        self.at_zero[:] = 0
        groups = [Group(name, n) for name, (n, _) in shapes.items()]
        names = list(shapes)
        self.biases = dict(zip(names, slices(groups, self.flat), strict=True))
        self.gradients = dict(zip(names, slices(groups, arena.flat("dlora")), strict=True))

    def forward(self, linear: Frozen, out: Any, inp: Any, kept: Any, accumulate: bool) -> None:  # noqa: ARG002
        linear.forward(out, inp, accumulate)
        self.ops.add_bias(out, self.biases[linear.name])

    def backward(self, linear: Frozen, dinp: Any, dout: Any, kept: Any, accumulate: bool) -> None:  # noqa: ARG002
        self.gradients[linear.name] += dout.sum(0)
        if dinp is not None:
            linear.backward(dinp, dout, accumulate)

    def after_step(self, step: int, total: int, lr: float) -> None:
        assert 1 <= step <= total
        self.at_zero += np.count_nonzero(self.flat == 0)
        self.flat[:] = np.sign(self.flat) * np.maximum(np.abs(self.flat) - lr * self.family.shrink, 0)

    def artifact(self) -> Artifact:
        return Artifact(tensors={f"{name}.added_bias": bias for name, bias in self.biases.items()})

    def load(self, found: Artifact, source: str) -> None:
        if {f"{name}.added_bias" for name in self.biases} != set(found.tensors):
            raise MismatchError(f"{source} has biases of other projections")
        for name, bias in self.biases.items():
            bias[:] = found.tensors[f"{name}.added_bias"]


def data(n: int, seed: int = 0) -> Dataset:
    rows = random_rows(416, n, 20, seed)
    return Dataset(rows, [{}] * n, "text", truncated=0, skipped=0, digest=f"random {seed}")


def test_a_proximal_step_follows_the_optimizers(bundle, tmp_path):
    rows = data(6)
    found = {}
    for shrink in (0.0, 0.3):
        trainer = Trainer(bundle, family=Sparse(shrink), steps=12, **OPTIONS)
        trainer.add_examples(rows.examples)
        before = trainer.loss(rows.examples)[0]
        trainer.train()
        assert trainer.loss(rows.examples)[0] < before - 0.01
        found[shrink] = trainer
    nonzero = {shrink: np.count_nonzero(trainer.arena.flat("lora")) for shrink, trainer in found.items()}
    assert 0 < nonzero[0.3] < nonzero[0.0]
    found[0.3].save(tmp_path / "out")
    again = Trainer(bundle, family=Sparse(), **OPTIONS)
    again.load(tmp_path / "out")
    assert np.array_equal(again.arena.flat("lora"), found[0.3].arena.flat("lora"))
    assert again.loss(rows.examples)[0] == pytest.approx(found[0.3].loss(rows.examples)[0])


def test_what_is_no_lora_resumes_to_the_same_bytes(bundle, tmp_path):
    """Its own state is in the checkpoints, too."""
    config = TrainConfig(steps=6, optimizer_state="float", **OPTIONS)
    states = []

    def go(out: Path, resume: bool = False, stop: Callable[[], bool] = lambda: False, shrink: float = 0.2) -> None:
        def seen(event: dict[str, Any]) -> None:
            if event["event"] == "resume":
                states.append(checkpoint.newest(out)[0].arrays)

        run(bundle, data(9), out, replace(config, family=Sparse(shrink)), resume=resume,
            callbacks=RunCallbacks(should_stop=stop, on_event=seen))

    go(tmp_path / "whole")
    calls = iter(range(10**6))
    with pytest.raises(Interrupted):
        go(tmp_path / "out", stop=lambda: next(calls) > 20)
    with pytest.raises(MismatchError, match="shrink"):
        go(tmp_path / "out", resume=True, shrink=0.3)
    go(tmp_path / "out", resume=True)
    assert ("steps_at_zero", 4) in states[0]
    assert (tmp_path / "out" / "adapter.gguf").read_bytes() == (tmp_path / "whole" / "adapter.gguf").read_bytes()


def test_our_engine_serves_it_and_it_is_no_lora(bundle, tmp_path, monkeypatch):
    rows = data(3)
    trainer = Trainer(bundle, family=Sparse(), steps=4, **OPTIONS)
    trainer.add_examples(rows.examples)
    trainer.train()
    trainer.save(tmp_path / "out")
    with LlamaModel(bundle.gguf, threads=1) as served:
        with pytest.raises(UsageError, match="sparse"):  # nobody has registered it
            served.load_adapter(tmp_path / "out", "new")
        monkeypatch.setitem(base._registry._found, "sparse", Sparse)  # as `register` does
        served.load_adapter(tmp_path / "out", "new")
        of_base = served_loss(served, rows)[0]
        served.use("new")
        assert served_loss(served, rows)[0] == pytest.approx(trainer.loss(rows.examples)[0], abs=0.01)
        assert of_base > trainer.loss(rows.examples)[0] + 0.05
    for use in (lambda: open_adapter(tmp_path / "out"), lambda: trainer.pairs,
                lambda: Trainer(bundle, **OPTIONS).load(tmp_path / "out")):
        with pytest.raises(EdgetuneError, match="family sparse"):
            use()
    assert recipe.options(TrainConfig(), {"family": "sparse"}).family == Sparse()


def test_a_registered_family_has_flags(bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(base._registry._found, "sparse", Sparse)
    shown = command("train", "--family", "sparse", "--help-all")
    assert "--shrink" in shown
    assert "--rank" not in shown
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "on", "completion": "off"}\n' * 3)
    command("train", bundle.path, rows, "-o", tmp_path / "out", "--family", "sparse", "--shrink", 0.5, "--steps", 1,
            "--eval", "none", "--threads", 1, "--anchors", 0)
    options = read_run(tmp_path / "out")["options"]
    assert (options["family"], options["shrink"]) == ("sparse", 0.5)
    assert "rank" not in options
    assert TrainConfig.read_json(options, "run.json").family == Sparse(0.5)
    with pytest.raises(UsageError, match="'rank' is no option"):
        TrainConfig(family="sparse", rank=8)
    assert "shrink" in train_options()
