"""Granite's experts with one that all tokens take: what llama.cpp serves, the same bytes in any memory, refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest
from commands import run as command
from families import logits_of
from random_adapters import distance
from slopes import slope_and_norm
from small_families import OPTIONS, data, small, trained
from tiny import write_tiny

from edgetune.adapters.store import open_adapter
from edgetune.bench.train import random_rows
from edgetune.data.packing import collate
from edgetune.errors import FormatError, UnsupportedError
from edgetune.formats.bundle import open_bundle
from edgetune.formats.gguf import check_model, open_gguf
from edgetune.formats.shape import read_shape
from edgetune.models.decoder import Decoder
from edgetune.serving.rollouts.forward import open_decoder
from edgetune.training.trainer import Trainer

SIZES = {"experts": (5, 2), "d_ff": 64, "d_shared": 96}
ARCHITECTURES = ("granitehybrid", "granitemoe")
TARGETS = "q_proj,gate_proj,up_proj,down_proj"
STEP = 1e-4  # no token takes another expert; with 1e-3 one did for 5 of 24 sets of rows, with 3e-4 for none


@pytest.fixture(params=ARCHITECTURES)
def model(request, tmp_path):
    return write_tiny(tmp_path / "tiny.gguf", request.param, **SIZES)


@pytest.mark.dev
@pytest.mark.parametrize("targets", ["all", TARGETS])
def test_what_was_trained_is_what_llama_cpp_serves(targets, model, tmp_path):
    """By default attention and the shared expert; by name the others, too."""
    trainer = trained(model, small("lora"), lr=0.05, targets=targets)
    trainer.save(tmp_path / "out")
    batch = collate(data(1).examples[:1])
    tokens = batch.tokens.tolist()
    ours = trainer.decoder.logits(batch)
    assert distance(logits_of(model, tokens, tmp_path / "out" / "adapter.gguf"), ours) < 1e-4
    assert distance(logits_of(model, tokens), ours) > 0.01, "it has learned nothing to compare"
    kinds = {re.sub(r"blk\.\d+\.", "", name).split(".")[0] for name in trainer.pairs}
    shared = {f"ffn_{name}_shexp" for name in ("gate", "up", "down")}
    assert kinds >= shared
    assert any("exps" in kind for kind in kinds) == (targets != "all")
    base = open_gguf(model)
    alone = open_decoder(base, open_adapter(tmp_path / "out", base).pairs, threads=1, max_tokens=30, max_length=24)
    assert distance(alone.logits(batch), ours) < 1e-5
    command("adapters", "merge", model, tmp_path / "out", "-o", tmp_path / "merged.gguf", "--to", "F32")
    assert distance(logits_of(tmp_path / "merged.gguf", tokens), ours) < 1e-4


@pytest.mark.dev
def test_in_any_memory_it_learns_the_same(model):
    """To the bit: activations kept or computed again, weights in memory or read."""
    found = []
    for more in ({}, {"recompute": "block"}, {"weights": "streamed"}, {"weights": "streamed", "recompute": "block"}):
        trainer = trained(model, small("lora"), targets=TARGETS, **more)
        found.append(trainer.arena.flat("lora").copy())
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", ["lora", "houlsby", "bitfit", "full"])
def test_gradients_are_the_slope_of_the_loss(name, model):
    trainer = Trainer(model, family=small(name), **OPTIONS)
    values = trainer.arena.flat("lora")
    values[:] += np.random.default_rng(0).standard_normal(values.size) / 50
    slope, norm = slope_and_norm(trainer.decoder, collate(data(3).examples), 1e-3)
    assert slope == pytest.approx(norm, rel=2e-2)


@pytest.mark.parametrize("precision", ["fast", "int8"])
def test_lower_precision_is_near(precision, tmp_path):
    path = write_tiny(tmp_path / "tiny.gguf", "granitehybrid", "Q8_0", **SIZES)
    rows = data(3).examples
    exact, low = (Trainer(path, family=small("lora"), **OPTIONS | {"precision": kind}) for kind in ("exact", precision))
    assert distance(low.decoder.score(collate(rows)), exact.decoder.score(collate(rows))) < 0.02


def test_a_hybrid_without_the_shared_expert(tmp_path):
    path = write_tiny(tmp_path / "tiny.gguf", "granitehybrid", **SIZES | {"d_shared": 0})
    trainer = trained(path, small("lora"), lr=0.05, targets="all")
    assert set(trainer.model.shape.feeds) == {"experts"}
    batch = collate(data(1).examples[:1])
    trainer.save(tmp_path / "out")
    served = logits_of(path, batch.tokens.tolist(), tmp_path / "out" / "adapter.gguf")
    assert distance(served, trainer.decoder.logits(batch)) < 1e-4


@pytest.mark.parametrize(("architecture", "keys", "kind", "said"), [
    ("granitehybrid", {"expert_used_count": 6}, FormatError, "expert_used_count is 6, allowed are 1 to 5"),
    ("granitehybrid", {"expert_used_count": 0}, FormatError, "expert_used_count is 0"),
    ("granitehybrid", {"expert_count": 0}, UnsupportedError, "granitehybrid.expert_used_count is 2, allowed is 0"),
    ("granitehybrid", {"expert_shared_feed_forward_length": 64}, FormatError, "metadata says"),
    ("granitehybrid", {"expert_shared_feed_forward_length": 0}, UnsupportedError, "has the tensor blk.0.ffn_.*_shexp"),
    ("granitemoe", {"expert_shared_count": 1}, UnsupportedError, "granitemoe.expert_shared_count = 1"),
    ("granitemoe", {"expert_weights_norm": False}, UnsupportedError, "granitemoe.expert_weights_norm = False"),
    ("qwen3moe", {}, UnsupportedError, "qwen3moe.expert_shared_feed_forward_length = 96"),
])
def test_files_that_are_refused(architecture, keys, kind, said, tmp_path):
    path = write_tiny(tmp_path / "tiny.gguf", architecture, **SIZES,
                      metadata={f"{architecture}.{key}": value for key, value in keys.items()})
    with pytest.raises(kind, match=said):
        read_checked(path)


def read_checked(path):
    gguf = open_gguf(path)
    check_model(gguf)
    return read_shape(gguf)


def test_a_dense_hybrid_stays_dense(tmp_path):
    """Whether its file counts no experts, or says nothing of them."""
    none = dict.fromkeys(("granitehybrid.expert_count", "granitehybrid.expert_used_count"), 0)
    for keys in ({}, none, none | {"granitehybrid.expert_shared_feed_forward_length": 128}):  # as converters write it
        path = write_tiny(tmp_path / f"{len(keys)}.gguf", "granitehybrid", metadata=keys)
        assert set(read_checked(path).feeds) == {"gated"}
        open_bundle(path)


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
