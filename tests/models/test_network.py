"""A network of another structure, which the package does not know, planned and trained through Trainer.

An embedding, blocks of two matrices (x += down(relu(up(x)))) without attention or norms, and the embedding as head.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Shape, model_metadata, tokenizer_metadata, write_gguf

from edgetune import models
from edgetune.backends.arena import Arena, Buffer
from edgetune.backends.base import HEAD_STATE
from edgetune.data.packing import Batch, Example, collate
from edgetune.errors import UsageError
from edgetune.formats.gguf import Gguf, open_gguf
from edgetune.models.base import NETWORKS, Flops, Network, Passes, Structure, register
from edgetune.models.linear import Projections, RunShape
from edgetune.models.networks import open_network
from edgetune.models.stream import Stream
from edgetune.training.config import TrainConfig
from edgetune.training.planned import make_plan
from edgetune.training.trainer import Trainer

N_BLOCKS = 3
D = 32
F = 48
V = 416
UP = "ffn_up"
DOWN = "ffn_down"
OPTIONS: dict[str, Any] = {"rank": 4, "batch_size": 4, "max_length": 16, "precision": "exact", "threads": 2, "lr": 2e-2}


class MlpStructure(Structure):
    n_layer = N_BLOCKS
    n_tokens = V
    head_weights = V * D

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        return {UP: (F, D), DOWN: (D, F)}

    def buffers(self, run: RunShape) -> list[Buffer]:
        t = run.max_tokens
        widths = {"inputs": D, "hidden": F, f"u_{UP}": run.family.kept_width, f"u_{DOWN}": run.family.kept_width}
        table = [Buffer(name, (N_BLOCKS, t, width), "step") for name, width in widths.items()]
        return [*table, Buffer("x", (t, D), "step"), Buffer("dx", (t, D), "step"), Buffer("act", (t, F), "step"),
                Buffer("dact", (t, F), "step"), Buffer("logits", (t, V), "step"), Buffer("logp", (t,), "step"),
                Buffer("state", (t, HEAD_STATE), "step"), *run.family.buffers(t, F, "float32")]

    def flops(self, run: RunShape, lengths: Sequence[int]) -> Flops:
        tokens = sum(lengths)
        live = N_BLOCKS - run.lowest
        return Flops(4 * tokens * N_BLOCKS * D * F, 4 * tokens * live * D * F, 2 * (tokens - len(lengths)) * V * D)


class Mlp(Network):
    def __init__(self, gguf: Gguf) -> None:
        self.gguf = gguf
        self.structure = MlpStructure()

    def build(self, run: RunShape, ops: Any, arena: Arena, streamed: int, seed: int) -> MlpPasses:
        return MlpPasses(self, run, ops, arena, streamed, seed)


class MlpPasses(Passes):
    def __init__(self, network: Mlp, run: RunShape, ops: Any, arena: Arena, streamed: int, seed: int) -> None:
        self.run = run
        self.ops = ops
        self.arena = arena
        self.stream = Stream(network.gguf, N_BLOCKS, ops, streamed)
        shapes = network.structure.trained_shapes(run)
        self.adapter = run.family.carve(shapes, arena, ops, seed)
        self.linear = Projections(ops, self.stream.weights, {}, run, self.adapter, shapes)
        self.before_block = lambda: None

    def kept(self, layer: int, t: int) -> dict[str, np.ndarray]:
        names = ("inputs", "hidden", f"u_{UP}", f"u_{DOWN}")
        return {n: self.arena.flat(n).reshape(self.arena.buffers[n].shape)[layer, :t] for n in names}

    def forward(self, batch: Batch, keep: bool) -> None:  # noqa: ARG002  # it keeps all it makes
        t = batch.tokens.size
        x = self.arena.view("x", t, D)
        act = self.arena.view("act", t, F)
        self.stream.enter(-1, 0)
        embedding, tokens = self.stream.rows(batch.tokens)
        self.ops.embed(x, tokens, embedding.data, embedding.format, 1.0)
        for layer in range(N_BLOCKS):
            self.before_block()
            self.stream.enter(layer, layer + 1)
            k = self.kept(layer, t)
            k["inputs"][:] = x
            self.linear.forward(k["hidden"], x, layer, UP, k)
            np.maximum(k["hidden"], 0, out=act)
            self.linear.forward(x, act, layer, DOWN, k, accumulate=True)

    def head_forward(self, batch: Batch, best: np.ndarray | None = None) -> np.ndarray:
        return self.head(batch, None, best)

    def head(self, batch: Batch, a: np.ndarray | None, best: np.ndarray | None = None) -> np.ndarray:
        """log p, and with `a` the gradient of x in dx."""
        rows = batch.supervised
        h = self.arena.view("x", batch.tokens.size, D)[rows]
        logp = self.arena.view("logp", rows.size)
        logits = self.arena.view("logits", rows.size, V)
        state = self.arena.view("state", rows.size, HEAD_STATE)
        head = self.stream.head
        targets = batch.targets
        self.stream.enter(N_BLOCKS)
        for part in self.stream.slices(targets):
            if a is None:
                self.ops.head_forward(logp, best, logits, state, h, head.data, head.format, targets, part)
            else:
                dh = np.empty_like(h)
                self.ops.head_backward(dh, logp, logits, logits, state, h, head.data, head.format, targets, a, part)
                dx = self.arena.view("dx", batch.tokens.size, D)
                dx.fill(0.0)
                np.add.at(dx, rows, dh)
        return logp

    def backward(self, batch: Batch, a: np.ndarray) -> np.ndarray:
        t = batch.tokens.size
        logp = self.head(batch, np.ascontiguousarray(a, np.float32))
        dx = self.arena.view("dx", t, D)
        act = self.arena.view("act", t, F)
        dact = self.arena.view("dact", t, F)
        for layer in range(N_BLOCKS - 1, self.run.lowest - 1, -1):
            self.before_block()
            self.stream.enter(layer, layer - 1)
            k = self.kept(layer, t)
            np.maximum(k["hidden"], 0, out=act)
            self.linear.backward(dact, dx, layer, DOWN, k)
            self.linear.finish(act, layer, DOWN)
            dact *= k["hidden"] > 0
            self.linear.backward(dx if layer > self.run.lowest else None, dact, layer, UP, k, accumulate=True)
            self.linear.finish(k["inputs"], layer, UP)
        self.stream.leave()
        return logp

    def score(self, batch: Batch, best: np.ndarray | None = None) -> np.ndarray:
        self.forward(batch, keep=False)
        logp = self.head_forward(batch, best)
        self.stream.leave()
        return logp


@pytest.fixture
def model(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tensors = {"token_embd.weight": rng.standard_normal((V, D)) * 0.4}
    for i in range(N_BLOCKS):
        tensors[f"blk.{i}.{UP}.weight"] = rng.standard_normal((F, D)) / D**0.5
        tensors[f"blk.{i}.{DOWN}.weight"] = rng.standard_normal((D, F)) / F**0.5
    monkeypatch.setitem(NETWORKS, "mlp", Mlp)
    shape = Shape(d_model=D, d_ff=F, n_blocks=N_BLOCKS, n_vocab=V)
    return write_gguf(tmp_path / "mlp.gguf", "mlp", tokenizer_metadata(V) | model_metadata("mlp", shape),
                      {name: tensor.astype(np.float32) for name, tensor in tensors.items()})


def examples(n: int) -> list[Example]:
    """Rows that count upwards: the next token follows from this one alone."""
    rows = (np.arange(12) + 5 * np.arange(n)[:, None]) % 64
    weights = np.r_[0, np.ones(11)].astype(np.float32)
    return [Example(row.astype(np.int32), weights) for row in rows]


@pytest.mark.learning
@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_it_learns(model, weights):
    trainer = Trainer(model, steps=60, weights=weights, **OPTIONS)
    trainer.add_examples(examples(8))
    before = trainer.loss(examples(8))[0]
    trainer.train()
    assert trainer.loss(examples(8))[0] < before - 1
    assert trainer.pairs.keys() == {f"blk.{i}.{t}" for i in range(N_BLOCKS) for t in (UP, DOWN)}


@pytest.mark.parametrize("blocks", ["all", "last:2"])
def test_gradient_by_finite_differences(model, blocks):
    trainer = Trainer(model, blocks=blocks, **OPTIONS)
    lora = trainer.arena.flat("lora")
    gradient = trainer.arena.flat("dlora")
    rng = np.random.default_rng(1)
    lora[:] = rng.standard_normal(lora.size) / 16
    batch = collate(examples(3))
    a = rng.standard_normal(batch.supervised.size).astype(np.float32)
    gradient.fill(0.0)
    trainer.decoder.forward(batch, keep=True)
    trainer.decoder.backward(batch, a)
    start = lora.copy()
    along = gradient.copy() / np.linalg.norm(gradient)

    def loss(step: float) -> float:
        lora[:] = start + np.float32(step) * along
        return -float(trainer.decoder.score(batch).astype(np.float64) @ a)

    assert (loss(1e-3) - loss(-1e-3)) / 2e-3 == pytest.approx(np.linalg.norm(gradient), rel=1e-2)


def test_the_planner_asks_the_network(model):
    network = NETWORKS["mlp"](open_gguf(model))
    config = TrainConfig(**OPTIONS)
    plan = make_plan(network, config)
    assert {"inputs", "hidden", "lora", "adam_m", "scratch"} <= {b.name for b in plan.buffers}
    assert plan.run.targets == (UP, DOWN)
    assert sum(b.shape[0] for b in plan.buffers if b.name == "lora") == N_BLOCKS * 2 * 4 * (D + F)
    with pytest.raises(UsageError, match="no attn_q"):
        make_plan(network, TrainConfig(**OPTIONS, targets="q_proj"))
    with pytest.raises(UsageError, match="training needs"):
        make_plan(network, TrainConfig(**OPTIONS, memory="1M"))


def test_a_file_of_the_folder_is_found(model, tmp_path, monkeypatch):
    """One that registers a network; two of one architecture are refused."""
    monkeypatch.delitem(NETWORKS, "mlp")
    place = tmp_path / "models"
    place.mkdir()
    (place / "another.py").write_text("from test_network import Mlp\n\nfrom .base import register\n\n"
                                      "Mlp.architectures = ('mlp',)\nregister(Mlp)\n")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(place)])
    monkeypatch.setattr(Mlp, "architectures", (), raising=False)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert type(open_network(open_gguf(model))).__name__ == "Mlp"
    monkeypatch.delitem(sys.modules, "edgetune.models.another")
    with pytest.raises(ValueError, match="Other has the architecture mlp of Mlp"):
        register(type("Other", (Mlp,), {"architectures": ("mlp",)}))
