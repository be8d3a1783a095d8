"""The GGUF files of `families` mean what transformers computes: llama.cpp is the judge, edgetune takes no part."""


import numpy as np
import pytest
from families import FAMILIES, ROPES_OF, VARIANTS, hf_logits, logits_of, make_family
from random_adapters import distance
from sometimes import SOME_FORMATS, mostly_slow
from tiny import SHAPES, write_tiny

from edgetune.formats.gguf import FORMATS

TOKENS = np.random.default_rng(7).integers(0, 400, size=96).tolist()  # past the original context and the window


def check(path, model, limit=1e-3):
    truth = hf_logits(model, TOKENS)
    served = logits_of(path, TOKENS)
    assert truth.std() > 0.5, "flat logits prove nothing"
    assert distance(served, truth) <= limit


@pytest.mark.parametrize(("name", "rope"), [(name, rope) for name in FAMILIES for rope in ROPES_OF[name]])
def test_llama_cpp_agrees_with_transformers(name, rope, tmp_path):
    check(*make_family(name, tmp_path, rope=rope))


@pytest.mark.parametrize(("name", "overrides"), [
    *VARIANTS,
    ("gemma3", {"sliding_window": 1}),
    # seven seconds; models/test_model.py compares edgetune with transformers on these blocks each time
    pytest.param("gemma3", {"num_hidden_layers": 62, "query_pre_attn_scalar": 16, "hidden_size": 64},
                 marks=pytest.mark.slow),
])
def test_llama_cpp_agrees_on_every_variant(name, overrides, tmp_path):
    check(*make_family(name, tmp_path, **overrides))


@pytest.mark.parametrize(("rope", "key"), [("linear", "rope.scaling.type"), ("none", "attention.key_length")])
def test_keys_that_files_leave_out(rope, key, tmp_path):
    """A factor alone means linear scaling; a head is D / H wide unless said."""
    check(*make_family("llama", tmp_path, rope=rope, metadata={f"llama.{key}": None}))


@pytest.mark.parametrize("rope", ["linear", "llama3", "yarn"])
def test_rope_kinds_differ(rope, tmp_path):
    """The comparison above would be blind to a scaling that changed nothing."""
    plain, scaled = (hf_logits(make_family("llama", tmp_path, rope=r)[1], TOKENS) for r in ("none", rope))
    assert distance(scaled, plain) > 0.05


def test_window_matters(tmp_path):
    near, far = (hf_logits(make_family("gemma3", tmp_path, sliding_window=w)[1], TOKENS) for w in (24, 400))
    assert np.array_equal(near[:24], far[:24])
    assert distance(near[24:], far[24:]) > 0.05


@pytest.mark.parametrize("format", mostly_slow(sorted(FORMATS.keys() - {"F32"}), SOME_FORMATS))
def test_quantized_files_hold_the_models_weights(format, tmp_path):
    """Looser: llama.cpp rounds activations to 8 bits (16 for K-quants) before such a product."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 2}
    check(*make_family("llama", tmp_path, formats=format, **sizes), limit=0.07)


@pytest.mark.parametrize("architecture", SHAPES)
def test_tiny_models_decode_and_are_deterministic(architecture, tmp_path):
    paths = [write_tiny(tmp_path / f"{i}.gguf", architecture, seed=i // 2) for i in range(3)]
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
    logits = logits_of(paths[0], TOKENS)
    assert logits.shape == (len(TOKENS), 416)
    assert 0.5 < logits.std() < 2


def test_tiny_formats_by_name(tmp_path):
    path = write_tiny(tmp_path / "mixed.gguf", formats={"token_embd": "Q8_0", "attn_v": "F16", "blk": "Q4_1"})
    from gguf import GGUFReader

    formats = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert formats["token_embd.weight"] == "Q8_0"
    assert formats["blk.1.attn_v.weight"] == "F16"
    assert formats["blk.1.ffn_down.weight"] == "Q4_1"
    assert formats["blk.1.ffn_norm.weight"] == formats["output_norm.weight"] == "F32"
