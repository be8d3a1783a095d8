"""A model in floats as transformers' model and back, against transformers itself."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from families import FAMILIES, ROPES_OF, hf_logits, logits_of, make_family

from edgetune.compress.source import floats
from edgetune.compress.source import huggingface as hf
from edgetune.formats.gguf import open_gguf

TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 416, 60)]


@pytest.mark.dev
@pytest.mark.parametrize(("family", "rope"), [(family, rope) for family in FAMILIES for rope in ROPES_OF[family]])
def test_the_model_in_torch_computes_what_the_source_does(family, rope, tmp_path):
    path, source = make_family(family, tmp_path, rope=rope)
    model = floats.read(open_gguf(path))
    made = hf.to_torch(model)
    assert np.abs(hf_logits(made, TOKENS) - hf_logits(source, TOKENS)).max() < 2e-4
    back = hf.from_torch(made, model)
    assert list(back.tensors) == list(model.tensors)
    for name, array in model.tensors.items():
        np.testing.assert_allclose(back.tensors[name], array, rtol=0, atol=2e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_written_floats_are_what_llama_cpp_runs(family, tmp_path):
    path, _ = make_family(family, tmp_path, formats="F16")
    model = floats.read(open_gguf(path))
    floats.write(tmp_path / "again.gguf", model)
    np.testing.assert_array_equal(logits_of(tmp_path / "again.gguf", TOKENS), logits_of(path, TOKENS))
    assert model.weights == sum(tensor.size for tensor in model.tensors.values())


def test_weights_that_f16_cannot_hold_become_bf16(tiny_llama, tmp_path):
    model = floats.read(open_gguf(tiny_llama))
    name = "blk.0.ffn_up.weight"
    large = model.tensors[name].copy()
    large[0, 0] = 1e6
    floats.write(tmp_path / "large.gguf", model.with_keys(model.tensors | {name: large}))
    stored = open_gguf(tmp_path / "large.gguf").tensors[name]
    assert stored.format == "BF16"
    np.testing.assert_allclose(stored.f32(), large, rtol=2**-8)
