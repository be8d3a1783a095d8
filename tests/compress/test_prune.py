"""Pruned models against transformers models in which the same parts were silenced by hand."""

import dataclasses

import numpy as np
import pytest
from sometimes import mostly_slow

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from families import FAMILIES, hf_logits, logits_of, make_family

from edgetune import Trainer
from edgetune.compress.shrink import prune
from edgetune.compress.shrink.prune import KeptParts
from edgetune.compress.source import floats
from edgetune.compress.source import huggingface as hf
from edgetune.errors import DataError, Interrupted, UsageError
from edgetune.formats.gguf import open_gguf, write_gguf

RNG = np.random.default_rng(0)
TOKENS = [int(token) for token in RNG.integers(0, 416, 60)]  # past gemma3's window of 24
WINDOWS = RNG.integers(0, 416, (12, 48)).astype(np.int32)
BLOCKS = 5  # gemma3: every second one sees everything


def read(path):
    return floats.read(open_gguf(path))


def served(model, folder):
    """llama.cpp's logits; the matrices are stored in F32, so that rounding hides nothing."""
    write_gguf(folder / "smaller.gguf", model.architecture, model.metadata, model.tensors, model.types)
    return logits_of(folder / "smaller.gguf", TOKENS)


def agree(logits, truth):
    assert truth.std() > 0.3, "flat logits prove nothing"
    assert np.linalg.norm(logits - truth) < 1e-3 * np.linalg.norm(truth)


def mean_kl(smaller, whole, windows=WINDOWS):
    """By transformers alone: of the smaller model's distributions to the whole one's."""
    total = 0.0
    for window in windows:
        p, q = (torch.log_softmax(torch.from_numpy(hf_logits(model, window)), -1) for model in (whole, smaller))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total / len(windows)


def silence(source, kept):
    """Takes groups and channels out of a transformers model by zeros in the matrices that read them."""
    config = source.config
    per_group = config.num_attention_heads // config.num_key_value_heads * source.model.layers[0].self_attn.head_dim
    with torch.no_grad():
        for block, keep in zip(source.model.layers, kept, strict=True):
            gone = np.setdiff1d(np.arange(block.self_attn.o_proj.in_features),
                                [g * per_group + j for g in keep.groups for j in range(per_group)])
            block.self_attn.o_proj.weight[:, gone] = 0
            block.mlp.down_proj.weight[:, np.setdiff1d(np.arange(config.intermediate_size), keep.channels)] = 0


def some(count, of, blocks):
    rng = np.random.default_rng(1)
    return [np.sort(rng.permutation(of)[:count]) for _ in range(blocks)]


@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_blocks_are_gone_for_llama_cpp(family, tmp_path):
    path, source = make_family(family, tmp_path, num_hidden_layers=BLOCKS)
    kept = [0, 3, 4]
    smaller = prune.without_blocks(read(path), kept)
    source.model.layers = torch.nn.ModuleList(source.model.layers[i] for i in kept)
    source.config.num_hidden_layers = 3
    truth = hf_logits(source, TOKENS)
    agree(served(smaller, tmp_path), truth)
    assert np.abs(hf_logits(hf.to_torch(smaller), TOKENS) - truth).max() < 2e-4
    if family == "gemma3":
        assert [bool(window) for window in smaller.shape.windows] == [True, False, True]
        assert open_gguf(tmp_path / "smaller.gguf").metadata["gemma3.attention.sliding_window_pattern"] == [
            True, False, True]


@pytest.mark.parametrize(("family", "more"), [*((family, {}) for family in FAMILIES),
                                              ("llama", {"attention_bias": True, "mlp_bias": True})])
def test_narrowed_blocks_lack_what_was_taken_for_llama_cpp(family, more, tmp_path):
    path, source = make_family(family, tmp_path, num_attention_heads=6, num_key_value_heads=3, **more)
    kept = [KeptParts(groups, channels) for groups, channels in zip(some(2, 3, 3), some(96, 160, 3), strict=True)]
    smaller = prune.narrowed(read(path), kept)
    silence(source, kept)
    agree(served(smaller, tmp_path), hf_logits(source, TOKENS))
    shape = smaller.shape
    assert (shape.n_head, shape.n_kv, shape.d_ff) == (4, 2, 96)
    assert shape.d_head == read(path).shape.d_head


def test_the_gemma3_that_scales_by_its_sizes_keeps_its_scale(tmp_path):
    """llama.cpp takes 62 blocks for the 27B model, whose attention is scaled by D / H."""
    path, source = make_family("gemma3", tmp_path, num_hidden_layers=62, query_pre_attn_scalar=16, hidden_size=64)
    smaller = prune.without_blocks(read(path), range(3))
    source.model.layers = source.model.layers[:3]
    source.config.num_hidden_layers = 3
    agree(served(smaller, tmp_path), hf_logits(source, TOKENS))


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ["gemma3"]))
def test_the_block_that_does_least_is_dropped_first(family, tmp_path):
    path, source = make_family(family, tmp_path, num_hidden_layers=4)
    model = read(path)
    faint = {f"blk.2.{name}.weight": np.float32(0.01) for name in (
        ("post_attention_norm", "post_ffw_norm") if family == "gemma3" else ("attn_output", "ffn_down"))}
    model = model.with_keys({name: array * faint.get(name, np.float32(1)) for name, array in model.tensors.items()})
    smaller, facts = prune.drop_blocks(model, WINDOWS, 2)
    assert facts.blocks[0] == 2
    assert facts.kl[0] < facts.kl[1]
    assert (smaller.shape.n_layer, smaller.weights) == (2, facts.weights_after)
    kept = [i for i in range(4) if i not in facts.blocks]
    plain = hf.to_torch(prune.without_blocks(model, kept))
    assert mean_kl(plain, hf.to_torch(model)) == pytest.approx(facts.kl[1], rel=0.05)  # it is chosen by in bf16
    del source


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ["gemma3"]))
def test_fitting_brings_a_narrowed_model_nearer(family, tmp_path):
    path, _ = make_family(family, tmp_path, num_attention_heads=6, num_key_value_heads=3)
    model = read(path)
    smaller, facts = prune.narrow(model, WINDOWS, 0.6)
    assert (facts.groups, facts.groups_before, facts.channels, facts.channels_before) == (2, 3, 96, 160)
    assert facts.weights_after == smaller.weights < facts.weights_before == model.weights
    whole = hf.to_torch(model)
    unfitted = prune.narrowed(model, chosen(smaller, model))
    assert mean_kl(hf.to_torch(smaller), whole) < 0.9 * mean_kl(hf.to_torch(unfitted), whole)


def chosen(smaller, model):
    """Which groups and channels a narrowed model has, found by its rows in the whole one."""
    def found(rows, among):
        return np.array([int(np.flatnonzero((among == row).all(1))[0]) for row in rows])

    kept = []
    for i in range(model.shape.n_layer):
        groups = found(*(m.tensors[f"blk.{i}.attn_v.weight"][:: model.shape.d_head] for m in (smaller, model)))
        kept.append(KeptParts(groups, found(*(m.tensors[f"blk.{i}.ffn_up.weight"] for m in (smaller, model)))))
    return kept


def test_silent_parts_cost_nothing(tmp_path):
    """Channels and a group that write nothing are those that go, and the model stays what it was."""
    path, source = make_family("llama", tmp_path, num_attention_heads=6, num_key_value_heads=3)
    kept = [KeptParts(groups, channels) for groups, channels in zip(some(2, 3, 3), some(96, 160, 3), strict=True)]
    model = read(path)
    silence(source, kept)
    tensors = dict(model.tensors)
    for i, block in enumerate(source.model.layers):
        tensors[f"blk.{i}.attn_output.weight"] = block.self_attn.o_proj.weight.detach().numpy()
        tensors[f"blk.{i}.ffn_down.weight"] = block.mlp.down_proj.weight.detach().numpy()
    smaller, _ = prune.narrow(dataclasses.replace(model, tensors=tensors), WINDOWS, 0.6)
    assert np.abs(hf_logits(hf.to_torch(smaller), TOKENS) - hf_logits(source, TOKENS)).max() < 1e-3


@pytest.mark.dev
@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_models_are_trained(family, tmp_path):
    path, _ = make_family(family, tmp_path, num_hidden_layers=BLOCKS)
    model, _ = prune.drop_blocks(read(path), WINDOWS, 2)
    model, _ = prune.narrow(model, WINDOWS, 0.5)
    floats.write(tmp_path / "smaller.gguf", model)
    trainer = Trainer(tmp_path / "smaller.gguf", rank=2, max_length=32, steps=1, batch_size=1, threads=1)
    trainer.add([{"text": "turn on the lamp, please"}])
    assert np.isfinite(trainer.step().loss)


@pytest.mark.parametrize(("d_ff", "width", "channels"), [
    (1536, 0.7, 1024), (1536, 0.75, 1152), (1536, 0.67, 1024), (8960, 0.75, 6656), (160, 0.75, 128), (16, 0.75, 16),
    (1536, 0.97, 1504), (1536, 0.99, 1536)])
def test_channels_are_kept_in_round_numbers(d_ff, width, channels):
    assert prune.channels_kept(d_ff, width) == channels


def test_what_cannot_be_pruned_is_said(tiny_llama):
    model = read(tiny_llama)
    for n in (0, 2, 5):
        with pytest.raises(UsageError, match=rf"^{n} of 2 blocks are to be dropped; drop 1 to 1$"):
            prune.drop_blocks(model, WINDOWS, n)
    for width in (0.0, 1.0):
        with pytest.raises(UsageError, match=rf"^width is {width:g}; keep a share over 0 and below 1$"):
            prune.narrow(model, WINDOWS, width)
    with pytest.raises(UsageError, match=r"^a width of 0.99 takes none of 2 attention groups and 128 channels; "):
        prune.narrow(model, WINDOWS, 0.99)
    with pytest.raises(DataError, match="has 48 tokens, at least 256"):
        prune.narrow(model, WINDOWS[:1], 0.5)
    for step in (lambda **how: prune.drop_blocks(model, WINDOWS, 1, **how),
                 lambda **how: prune.narrow(model, WINDOWS, 0.5, **how)):
        with pytest.raises(Interrupted):
            step(should_stop=lambda: True)
