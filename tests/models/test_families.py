"""The GGUF files of `families` mean what transformers computes: llama.cpp is the judge, edgetune takes no part."""

import numpy as np
import pytest
from families import FAMILIES, ROPES_OF, VARIANTS, hf_logits, logits_of, make_family
from random_adapters import distance
from tiny import SHAPES, write_tiny

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


@pytest.mark.parametrize("architecture", SHAPES)
def test_tiny_models_decode_and_are_deterministic(architecture, tmp_path):
    paths = [write_tiny(tmp_path / f"{i}.gguf", architecture, seed=i // 2) for i in range(3)]
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
    logits = logits_of(paths[0], TOKENS)
    assert logits.shape == (len(TOKENS), 416)
    assert 0.5 < logits.std() < 2
