"""A network that is no language model: an encoder whose every token sees all of its document, below a head for classes.

The network with its head and the objective stand in this file, the reader of rows with labels in toy_labels.py: three
files in the package. Nothing else knows them; the real Trainer and the commands plan and train them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import toy_labels
from commands import run as command
from tiny import Shape, model_metadata, tokenizer_metadata, write_gguf

from edgetune import models
from edgetune.adapters.base import Group
from edgetune.adapters.heads import HeadKind
from edgetune.adapters.store import open_adapter, read_artifact
from edgetune.backends.arena import Arena, Buffer
from edgetune.data.packing import Batch, Example, collate
from edgetune.errors import DataError, UnsupportedError, UsageError
from edgetune.formats.gguf import Gguf, open_gguf
from edgetune.models.base import NETWORKS, Flops, Network, Passes, Structure, register
from edgetune.models.linear import Projections, RunShape
from edgetune.models.networks import open_network
from edgetune.models.stream import Stream
from edgetune.objectives import base
from edgetune.objectives.base import Objective, Signal
from edgetune.objectives.grpo import Grpo
from edgetune.objectives.ppo import Ppo
from edgetune.training.config import TrainConfig
from edgetune.training.sizing import make_plan
from edgetune.training.trainer import Trainer

N_BLOCKS = 2
D = 32
V = 416
CLASSES = 5
MIX = "mix"
OPTIONS: dict[str, Any] = {"rank": 4, "batch_size": 6, "max_length": 16, "precision": "exact", "threads": 1, "lr": 2e-2}


class EncoderStructure(Structure):
    n_layer = N_BLOCKS
    n_tokens = V
    head_weights = CLASSES * D

    def linear_shapes(self, layer: int) -> dict[str, tuple[int, int]]:  # noqa: ARG002
        return {MIX: (D, D)}

    def head_groups(self, heads: Sequence[HeadKind]) -> list[Group]:
        if [head.name for head in heads] != ["classes"]:
            raise UsageError(f"this encoder has no head for {heads[-1].name}, but one for classes")
        return [Group("classes", heads[0].size * D, decay=False)]

    def buffers(self, run: RunShape) -> list[Buffer]:
        t = run.max_tokens
        kept = [Buffer(name, (N_BLOCKS, t, width), "step")
                for name, width in (("hidden", D), (f"u_{MIX}", run.family.kept_width))]
        return [*kept, *(Buffer(name, (t, D), "step") for name in ("x", "dx", "seen", "dhidden")),
                *run.family.buffers(t, self.trained_shapes(run), "float32")]

    def flops(self, run: RunShape, lengths: Sequence[int]) -> Flops:  # noqa: ARG002
        whole = 2 * sum(lengths) * N_BLOCKS * D * D
        return Flops(whole, whole, 2 * len(lengths) * self.head_weights)


class Encoder(Network):
    is_causal: ClassVar[bool] = False

    def __init__(self, gguf: Gguf) -> None:
        self.gguf = gguf
        self.structure = EncoderStructure()

    def build(self, run: RunShape, ops: Any, arena: Arena, streamed: int, seed: int) -> EncoderPasses:
        return EncoderPasses(self, run, ops, arena, streamed, seed)


class EncoderPasses(Passes):
    """x += tanh(mix(the mean of the document's x)); log p of classes = log softmax(W x)."""

    def __init__(self, network: Encoder, run: RunShape, ops: Any, arena: Arena, streamed: int, seed: int) -> None:
        self.arena = arena
        self.ops = ops
        self.stream = Stream(network.gguf, N_BLOCKS, ops, streamed)
        shapes = network.structure.trained_shapes(run)
        self.adapter = run.family.carve(shapes, arena, ops, seed)
        self.linear = Projections(ops, self.stream.weights, {}, run, self.adapter, shapes)
        self.before_block = lambda: None
        size = run.heads[0].size
        self.w = arena.flat("lora")[-size * D:].reshape(size, D)
        self.dw = arena.flat("dlora")[-size * D:].reshape(size, D)
        self.w[:] = np.random.default_rng(seed).standard_normal(self.w.shape) / D

    def kept(self, layer: int, t: int) -> dict[str, np.ndarray]:
        return {name: self.arena.flat(name).reshape(self.arena.buffers[name].shape)[layer, :t]
                for name in ("hidden", f"u_{MIX}")}

    def means(self, batch: Batch, out: np.ndarray, x: np.ndarray) -> None:
        """out = of each token the mean over its document. It is its own transpose, so backward is the same."""
        starts = np.flatnonzero(batch.positions == 0)
        for start, end in zip(starts, [*starts[1:], len(x)], strict=True):
            out[start:end] = x[start:end].mean(0)

    def forward(self, batch: Batch, keep: bool) -> None:  # noqa: ARG002  # it keeps all it makes
        t = batch.tokens.size
        x, seen = (self.arena.view(name, t, D) for name in ("x", "seen"))
        self.stream.enter(-1, 0)
        embedding, tokens = self.stream.rows(batch.tokens)
        self.ops.embed(x, tokens, embedding.data, embedding.format, 1.0)
        for layer in range(N_BLOCKS):
            self.before_block()
            self.stream.enter(layer, layer + 1)
            k = self.kept(layer, t)
            self.means(batch, seen, x)
            self.linear.forward(k["hidden"], seen, layer, MIX, k)
            np.tanh(k["hidden"], out=k["hidden"])
            x += k["hidden"]

    def said(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """(the hidden states [S, D], log p of all classes [S, classes])"""
        h = self.arena.view("x", batch.tokens.size, D)[batch.supervised]
        z = h @ self.w.T
        return h, z - np.log(np.exp(z).sum(1, keepdims=True))

    def head_forward(self, batch: Batch, best: np.ndarray | None = None) -> np.ndarray:
        _, logp = self.said(batch)
        if best is not None:
            best[:] = logp.argmax(1)
        return logp[np.arange(len(logp)), batch.targets].astype(np.float32)

    def backward(self, batch: Batch, a: np.ndarray, dvalues: np.ndarray | None = None) -> np.ndarray:  # noqa: ARG002
        t = batch.tokens.size
        h, logp = self.said(batch)
        found = logp[np.arange(len(logp)), batch.targets].astype(np.float32)
        dz = a[:, None] * np.exp(logp)
        dz[np.arange(len(dz)), batch.targets] -= a
        self.dw += dz.T @ h
        x, dx, seen, dhidden = (self.arena.view(name, t, D) for name in ("x", "dx", "seen", "dhidden"))
        dx[:] = 0
        np.add.at(dx, batch.supervised, dz @ self.w)
        for layer in reversed(range(N_BLOCKS)):
            self.before_block()
            self.stream.enter(layer, layer - 1)
            k = self.kept(layer, t)
            x -= k["hidden"]
            self.means(batch, seen, x)
            dhidden[:] = dx * (1 - k["hidden"] ** 2)
            through = np.empty_like(dx)
            self.linear.backward(through, dhidden, layer, MIX, k)
            self.linear.finish(seen, layer, MIX)
            self.means(batch, dhidden, through)
            dx += dhidden
        self.stream.leave()
        return found

    def score(self, batch: Batch, best: np.ndarray | None = None) -> np.ndarray:
        self.forward(batch, keep=False)
        found = self.head_forward(batch, best)
        self.stream.leave()
        return found


@dataclass(frozen=True)
class Classify(Objective):
    """L = -(1/N) sum log p of the rows' labels."""

    name: ClassVar[str] = "classify"
    method: ClassVar[str] = "classify"
    heads: ClassVar[tuple[HeadKind, ...]] = (HeadKind("classes", CLASSES),)
    rows: ClassVar[Any] = toy_labels

    def count(self, examples: Sequence[Example]) -> float:
        return float(sum(example.supervised for example in examples))

    def weights(self, logp: np.ndarray, batch: Batch) -> Signal:
        return Signal(batch.supervised_weights, -float(logp.sum(dtype=np.float64)))


def labelled(n: int, seed: int = 0) -> list[Example]:
    """The label of a row stands at its first token, and is that of the word most of it is made of."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        size = int(rng.integers(5, 14))
        tokens = np.where(rng.random(size) < 0.6, 10 + i % CLASSES, rng.integers(20, V, size)).astype(np.int32)
        weights = np.zeros(size, np.float32)
        weights[0] = 1
        rows.append(Example(tokens, weights, labels=np.full(size, i % CLASSES, np.int32)))
    return rows


@pytest.fixture
def model(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tensors = {"token_embd.weight": rng.standard_normal((V, D)) * 0.4}
    tensors |= {f"blk.{i}.{MIX}.weight": rng.standard_normal((D, D)) / D**0.5 for i in range(N_BLOCKS)}
    monkeypatch.setitem(NETWORKS, "jina-bert-v2", Encoder)  # llama.cpp reads the tokenizer of files that it knows
    shape = Shape(d_model=D, n_blocks=N_BLOCKS, n_vocab=V)
    metadata = (tokenizer_metadata(V) | model_metadata("jina-bert-v2", shape)
                | {"jina-bert-v2.attention.layer_norm_epsilon": 1e-5})
    return write_gguf(tmp_path / "encoder.gguf", "jina-bert-v2", metadata,
                      {name: tensor.astype(np.float32) for name, tensor in tensors.items()})


@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_it_learns_and_its_head_is_a_part_of_the_adapter(model, weights, tmp_path):
    trainer = Trainer(model, objective=Classify(), steps=60, weights=weights, **OPTIONS)
    trainer.add_examples(labelled(40))
    held = labelled(20, seed=1)
    before = trainer.loss(held)[0]
    trainer.train()
    after = trainer.loss(held)[0]
    assert after < before / 2
    best = np.empty(1, np.int32)
    found = []
    for example in held:
        trainer.decoder.score(collate([example]), best)
        found.append(best[0] == example.labels[0])
    assert np.mean(found) > 0.8
    trainer.save(tmp_path / "out")
    again = Trainer(model, objective=Classify(), **OPTIONS)
    again.load(tmp_path / "out")
    assert again.loss(held)[0] == pytest.approx(after, rel=1e-5)
    with pytest.raises(UnsupportedError, match="cannot apply"):
        open_adapter(tmp_path / "out")


def test_gradient_by_finite_differences(model):
    """Of the adapter and of the head."""
    trainer = Trainer(model, objective=Classify(), **OPTIONS)
    lora = trainer.arena.flat("lora")
    gradient = trainer.arena.flat("dlora")
    rng = np.random.default_rng(1)
    lora[:] = rng.standard_normal(lora.size) / 16
    batch = collate(labelled(4), share=False)
    a = rng.standard_normal(batch.supervised.size).astype(np.float32)
    gradient.fill(0.0)
    trainer.decoder.forward(batch, keep=True)
    trainer.decoder.backward(batch, a)
    start = lora.copy()
    head = np.arange(lora.size) >= lora.size - CLASSES * D
    for part in (head, ~head):
        along = np.where(part, gradient, 0) / np.linalg.norm(gradient[part])

        def loss(step: float, along: np.ndarray = along) -> float:
            lora[:] = start + np.float32(step) * along
            return -float(trainer.decoder.score(batch).astype(np.float64) @ a)

        assert (loss(1e-3) - loss(-1e-3)) / 2e-3 == pytest.approx(np.linalg.norm(gradient[part]), rel=1e-2)


def test_rows_that_begin_alike_are_not_shared(model):
    """Each token sees those after it."""
    trainer = Trainer(model, objective=Classify(), **OPTIONS)
    first, second = labelled(2)
    second = Example(np.concatenate([first.tokens, second.tokens])[:14], np.eye(1, 14, dtype=np.float32)[0],
                     labels=np.ones(14, np.int32))
    alone = [trainer.loss([one])[0] for one in (first, second)]
    assert trainer.loss([first, second])[0] == pytest.approx(np.mean(alone), rel=1e-5)


def test_the_planner_asks_the_network(model):
    network = Encoder(open_gguf(model))
    plan = make_plan(network, TrainConfig(**OPTIONS), objective=Classify())
    assert {"x", "hidden", "lora", "adam_m", "scratch"} <= {buffer.name for buffer in plan.buffers}
    assert plan.run.targets == (MIX,)
    assert sum(b.shape[0] for b in plan.buffers if b.name == "lora") == N_BLOCKS * 4 * 2 * D + CLASSES * D
    with pytest.raises(UsageError, match="no attn_q"):
        make_plan(network, TrainConfig(**OPTIONS, targets="q_proj"), objective=Classify())
    with pytest.raises(UsageError, match="training needs"):
        make_plan(network, TrainConfig(**OPTIONS, memory="1M"), objective=Classify())


def test_a_file_of_the_folder_is_found(model, tmp_path, monkeypatch):
    """One that registers a network; two of one architecture are refused."""
    monkeypatch.delitem(NETWORKS, "jina-bert-v2")
    place = tmp_path / "models"
    place.mkdir()
    (place / "another.py").write_text("from test_encoder import Encoder\n\nfrom .base import register\n\n"
                                      "Encoder.architectures = ('jina-bert-v2',)\nregister(Encoder)\n")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(place)])
    monkeypatch.setattr(Encoder, "architectures", (), raising=False)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert type(open_network(open_gguf(model))).__name__ == "Encoder"
    monkeypatch.delitem(sys.modules, "edgetune.models.another")
    with pytest.raises(ValueError, match="Other has the architecture jina-bert-v2 of Encoder"):
        register(type("Other", (Encoder,), {"architectures": ("jina-bert-v2",)}))


def test_what_the_network_does_not_have_is_refused(model):
    with pytest.raises(UsageError, match="no head for vocabulary"):
        Trainer(model, **OPTIONS)
    for objective in (Grpo(), Ppo()):
        with pytest.raises(UsageError, match="needs a model that answers"):
            make_plan(Encoder(open_gguf(model)), TrainConfig(**OPTIONS), objective=objective)
    trainer = Trainer(model, objective=Classify(), **OPTIONS)
    with pytest.raises(DataError, match=r"label outside 0\.\.4"):
        trainer.add_examples([Example(np.arange(3, dtype=np.int32), np.ones(3, np.float32),
                                      labels=np.array([0, 1, 5], np.int32))])


def test_commands_train_it(model, tmp_path, monkeypatch):
    """With the network, the objective and the reader of rows, and nothing else that knows them."""
    base.objectives()  # that all are there, and none comes after it
    monkeypatch.setitem(base._registry._found, "classify", Classify)
    rows = [{"sentence": f"{word} {i}", "label": label} for i in range(12)
            for label, word in enumerate(("light", "radio", "door", "heat", "fan"))]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (model, path, "--method", "classify", "--batch-size", 6, "--max-length", 24, "--threads", 1)
    assert json.loads(command("plan", *common, "--json"))["rows"] == 0.9 * len(rows)
    out = tmp_path / "out"
    said = json.loads(command("train", *common, "-o", out, "--steps", 60, "--lr", 2e-2, "--json"))
    assert said["held_out"]["loss_after"] < said["held_out"]["loss_before"] / 2
    assert "head.classes" in read_artifact(out, open_gguf(model)).tensors
