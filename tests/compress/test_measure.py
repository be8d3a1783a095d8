"""KL, perplexity and agreement of two models in llama.cpp, against transformers' logits in float64."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from families import hf_logits, log_p, make_family
from tiny import write_tiny

from edgetune.compress import measure
from edgetune.compress.source import floats
from edgetune.errors import DataError, Interrupted, MismatchError
from edgetune.formats.gguf import open_gguf

WINDOWS = np.random.default_rng(0).integers(0, 400, (3, 70)).astype(np.int32)


def test_the_cost_is_that_of_transformers_logits(tmp_path):
    source_path, source = make_family("qwen2", tmp_path)
    model_path, model = make_family("qwen2", tmp_path, formats="F16", seed=0, rope="linear")
    cost = measure.compare(source_path, model_path, WINDOWS)
    expected = np.zeros(4)
    for window in WINDOWS:
        p, q = (log_p(hf_logits(each, window.tolist()))[:-1] for each in (source, model))
        chosen = np.arange(len(p)), window[1:]
        expected += (-p[chosen].mean(), -q[chosen].mean(), (np.exp(p) * (p - q)).sum(1).mean(),
                     (p.argmax(1) == q.argmax(1)).mean())
    expected /= len(WINDOWS)
    assert cost.tokens == 3 * 69
    found = (np.log(cost.source_perplexity), np.log(cost.perplexity), cost.kl, cost.top1)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=5e-3)
    assert cost.kl > 0.05 > cost.kl_error > 0


def test_a_model_costs_nothing_beside_itself(tiny_llama):
    cost = measure.compare(tiny_llama, tiny_llama, WINDOWS)
    assert cost.kl == 0
    assert cost.top1 == 1
    assert cost.perplexity == cost.source_perplexity


def test_the_source_of_a_trimmed_model_is_asked_about_the_kept_tokens_alone(tiny_llama, tmp_path):
    source = floats.read(open_gguf(tiny_llama))
    kept = np.concatenate([np.arange(400), [405, 403]]).astype(np.int32)
    small = write_tiny(tmp_path / "small.gguf", n_vocab=402)
    keys = floats.read(open_gguf(small))
    tensors = source.tensors | {"token_embd.weight": source.tensors["token_embd.weight"][kept]}
    floats.write(tmp_path / "trimmed.gguf", keys.with_keys(tensors))
    floats.write(tmp_path / "whole.gguf", source)
    windows = np.concatenate([WINDOWS, np.full((3, 1), 400), np.full((3, 1), 401)], 1).astype(np.int32)
    cost = measure.compare(tmp_path / "whole.gguf", tmp_path / "trimmed.gguf", windows, kept)
    assert abs(cost.kl) < 1e-6
    assert cost.top1 == 1
    assert cost.perplexity == pytest.approx(cost.source_perplexity, rel=1e-4)
    with pytest.raises(MismatchError, match=r"416 tokens and .* has 402"):
        measure.compare(tmp_path / "whole.gguf", tmp_path / "trimmed.gguf", WINDOWS)


def test_what_cannot_be_measured_is_refused(tiny_llama):
    with pytest.raises(DataError, match="at least a window of two"):
        measure.compare(tiny_llama, tiny_llama, WINDOWS[:, :1])
    with pytest.raises(Interrupted):
        measure.compare(tiny_llama, tiny_llama, WINDOWS, should_stop=lambda: True)
