"""Importance against transformers' hidden states, codes against ggml's own bytes, rounding by what it loses."""

import numpy as np
import pytest
from sometimes import SOME_FORMATS, mostly_slow

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from families import logits_of, make_family

from edgetune.compress.quantize import grid
from edgetune.compress.quantize import grid as rounding
from edgetune.compress.quantize import sensitivity as importance
from edgetune.compress.quantize import write as quantize
from edgetune.compress.source import floats
from edgetune.errors import Interrupted, UsageError
from edgetune.formats.gguf import open_gguf
from edgetune.formats.gguf.read import BY_NAME, Tensor
from edgetune.llamacpp.quantizer import encode

WINDOWS = np.random.default_rng(0).integers(0, 400, (3, 50)).astype(np.int32)


def decoded(data, format, shape):
    return Tensor("t", shape, format, np.ascontiguousarray(data).reshape(-1)).f32()


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return make_family("llama", tmp_path_factory.mktemp("family"), hidden_size=128, intermediate_size=256, head_dim=32)


@pytest.fixture(scope="module")
def model(family):
    return floats.read(open_gguf(family[0]))


def test_importance_is_the_mean_square_of_what_transformers_puts_in(family, model):
    found = importance.collect(model, WINDOWS)
    _, source = family
    with torch.no_grad():
        out = source.model(torch.from_numpy(WINDOWS.astype(np.int64)), output_hidden_states=True).hidden_states
        expected = {"output.weight": out[-1]}  # after the last norm
        for i, layer in enumerate(source.model.layers):
            expected |= {f"blk.{i}.attn_{part}.weight": layer.input_layernorm(out[i]) for part in "qkv"}
    for name, inputs in expected.items():
        np.testing.assert_allclose(found[name], inputs.flatten(0, 1).square().mean(0).numpy(), rtol=1e-4)
    assert set(found) == {name for name, array in model.tensors.items() if array.ndim == 2} - {"token_embd.weight"}


def test_moments_have_importance_on_their_diagonal_and_are_shared(model):
    found = importance.moments(model, WINDOWS)
    diagonal = importance.collect(model, WINDOWS)
    assert set(found) == set(diagonal)
    for name, values in found.items():
        np.testing.assert_allclose(values.diagonal(), diagonal[name], rtol=1e-4)
        np.testing.assert_allclose(values, values.T, atol=1e-5 * np.abs(values).max())
    assert found["blk.1.attn_q.weight"] is found["blk.1.attn_v.weight"]
    assert found["blk.1.ffn_gate.weight"] is found["blk.1.ffn_up.weight"]


@pytest.mark.parametrize("format", grid.FIELDS)
def test_codes_lie_where_ggml_puts_them(format):
    kind = BY_NAME[format]
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((32, 2 * kind.block)).astype(np.float32)
    blocks = encode(weights, format).reshape(-1, kind.size)
    values = decoded(blocks, format, (len(blocks), kind.block))
    scale, offset = grid.lines(blocks, format, kind.block)
    codes, levels = grid.Nearest(format)(torch.from_numpy((values - offset) / scale))
    np.testing.assert_allclose(offset + scale * levels.numpy(), values, atol=1e-5)
    again = np.where(np.arange(kind.size) < 0, 0, blocks)
    grid.put(again, np.zeros_like(codes.numpy()), format)
    grid.put(again, codes.numpy(), format)
    same = decoded(again, format, values.shape)
    np.testing.assert_array_equal(same, values)


@pytest.mark.parametrize("format", mostly_slow(grid.FIELDS, SOME_FORMATS))
def test_errors_that_make_up_for_each_other_lose_less_of_the_product(format):
    rng = np.random.default_rng(2)
    width = 512
    mixed = rng.standard_normal((2000, width)) @ (rng.standard_normal((width, width)) * 0.05 + np.eye(width))
    moments = (mixed.T @ mixed / len(mixed)).astype(np.float32)
    weights = rng.standard_normal((96, width)).astype(np.float32)
    factor = rounding.factor_of(moments)

    def lost(data):
        error = decoded(data, format, weights.shape) - weights
        return ((error @ moments) * error).sum()

    ours = rounding.compensated(weights, format, factor)
    assert lost(ours) < 0.9 * lost(encode(weights, format, np.ascontiguousarray(moments.diagonal())))


@pytest.fixture
def warned_always():
    """By torch, which else warns once in a process, maybe in another test."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.parametrize("format", ["Q2_0", "MXFP4"])
@pytest.mark.usefixtures("warned_always")
def test_scales_are_looked_for_where_llama_cpp_does_not(format):
    weights = np.random.default_rng(3).standard_normal((16, 192)).astype(np.float32)
    weights.setflags(write=False)  # as those of a file that is mapped
    importance = np.linspace(0.1, 2, 192).astype(np.float32)
    losses = [(np.square(decoded(data, format, weights.shape) - weights) @ importance).sum()
              for data in (grid.fit(weights, format, importance), encode(weights, format, importance))]
    assert losses[0] < 0.95 * losses[1]


@pytest.mark.dev
def test_a_written_model_is_what_llama_cpp_runs(model, tmp_path):
    kinds = ("Q8_0", "Q5_1", "Q4_0", "IQ4_NL", "F16", "Q2_0")
    types = {name: kinds[i % len(kinds)] for i, (name, array) in enumerate(model.tensors.items()) if array.ndim == 2}
    moments = importance.moments(model, WINDOWS)
    done = quantize.write(tmp_path / "a.gguf", model, types, moments=moments, threads=2)
    stored = open_gguf(tmp_path / "a.gguf")
    assert {name: tensor.format for name, tensor in stored.tensors.items() if len(tensor.shape) == 2} == types
    assert done.bytes == (tmp_path / "a.gguf").stat().st_size
    assert sum(done.formats.values()) == len(types)
    floats.write(tmp_path / "b.gguf", floats.read(stored))
    tokens = WINDOWS[0].tolist()
    found, expected = (logits_of(tmp_path / name, tokens) for name in ("a.gguf", "b.gguf"))
    assert (found - expected).std() < 0.05 * expected.std()  # llama.cpp rounds activations for these formats
    quantize.write(tmp_path / "again.gguf", model, types, moments=moments)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    with pytest.raises(Interrupted):
        quantize.write(tmp_path / "c.gguf", model, types, should_stop=lambda: True)
    assert not (tmp_path / "c.gguf").exists()


def test_stock_types_take_the_importance_matrix(model, tmp_path):
    floats.write(tmp_path / "f16.gguf", model)
    given = importance.collect(model, WINDOWS)
    plain = quantize.stock(tmp_path / "f16.gguf", tmp_path / "plain.gguf", "Q4_0")
    weighed = quantize.stock(tmp_path / "f16.gguf", tmp_path / "weighed.gguf", "q4_0", given)
    assert plain.bytes <= weighed.bytes  # llama.cpp notes that there was an importance matrix
    name = "blk.1.ffn_up.weight"
    data = [open_gguf(tmp_path / file).tensors[name].data for file in ("plain.gguf", "weighed.gguf")]
    np.testing.assert_array_equal(data[1], encode(model.tensors[name].astype(np.float16).astype(np.float32),
                                                  "Q4_0", given[name]).reshape(-1))
    assert (data[0] != data[1]).any()
    with pytest.raises(UsageError, match="the type Q9 is unknown; choose from"):
        quantize.stock(tmp_path / "f16.gguf", tmp_path / "no.gguf", "Q9")
