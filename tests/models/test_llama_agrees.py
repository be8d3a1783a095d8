"""What is trained is what llama.cpp serves: both take a variant of a tiny model, with equal losses, or neither does."""

import numpy as np
import pytest
from click.testing import CliRunner
from families import logits_of
from llama_loads import Loader
from random_adapters import distance
from sometimes import mostly_slow
from tiny import SHAPES, write_tiny
from variants import known_keys, variant

from edgetune.cli import cli
from edgetune.cli.info import describe
from edgetune.data.packing import Example, collate
from edgetune.errors import EdgetuneError
from edgetune.formats.families import FAMILIES
from edgetune.formats.gguf import check_model, open_gguf
from edgetune.formats.shape import read_shape
from edgetune.models.decoder import Model
from edgetune.serving.llama import LlamaModel
from edgetune.serving.rollouts.forward import open_decoder

IGNORED = [("ernie4_5", "attn_output")]  # biases that llama.cpp reads and does not add
PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def we_take(path):
    try:
        gguf = open_gguf(path)
        check_model(gguf)
        read_shape(gguf)
    except EdgetuneError:
        return False
    return True


@pytest.fixture(scope="module")
def llama():
    with Loader() as llama:
        yield llama


@pytest.mark.dev
@pytest.mark.parametrize("architecture", SHAPES)
def test_optional_tensors(architecture, tmp_path, tiny_models, llama):
    base = open_gguf(tiny_models[architecture])
    for name in PROJECTIONS:
        if f"blk.0.{name}.weight" not in base.tensors:
            continue
        rows = base.tensors[f"blk.0.{name}.weight"].shape[0]
        biases = {f"blk.{i}.{name}.bias": np.full(rows, 0.5, np.float32) for i in range(2)}
        path = variant(tmp_path / "model.gguf", base, tensors=biases)
        assert we_take(path) == (name in FAMILIES[architecture].biases), name
        assert we_take(path) == llama.loads(path) or (architecture, name) in IGNORED, name
    width = base.metadata[f"{architecture}.rope.dimension_count"]
    for value in (1.0, 3.0, 0.0, np.nan, -np.inf):
        factors = {"rope_freqs.weight": np.full(width // 2, value, np.float32)}
        path = variant(tmp_path / "model.gguf", base, tensors=factors)
        assert we_take(path) == (FAMILIES[architecture].rope_factors and value > 0), value
        assert not we_take(path) or llama.loads(path)
        if not value > 0:  # nor is it served
            with pytest.raises(EdgetuneError), LlamaModel(path):
                pass


OTHERS = {"str": "x", "u32": 1}


@pytest.mark.parametrize("every", mostly_slow([25, 1], [25]))
@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_key_of_another_type_that_llama_cpp_refuses_is_refused_here(every, architecture, kind, tmp_path, tiny_models,
                                                                      llama):
    """All keys that its library names, as text and as a number, but for those that are read first, and a text."""
    base = open_gguf(tiny_models[architecture])
    names = known_keys(architecture)
    assert len(names) > 150
    first = {"general.architecture", "general.alignment", "tokenizer.ggml.pre"}
    for key in sorted(set(names) - first)[::every]:
        path = variant(tmp_path / "model.gguf", base, {key: OTHERS[kind]}, types={key: kind})
        assert not we_take(path) or llama.loads(path), key


def test_a_vocabulary_that_llama_cpp_refuses_is_neither_trainable_nor_planned(tmp_path, tiny_llama):
    path = variant(tmp_path / "model.gguf", open_gguf(tiny_llama), {"tokenizer.ggml.pre": "x"})
    facts = describe(path)
    assert not facts["trainable"]
    assert "unknown pre-tokenizer type: 'x'" in facts["why_not"]
    planned = CliRunner().invoke(cli, ["plan", str(path), "--no-measure"])
    assert planned.exit_code == 1
    assert "unknown pre-tokenizer type: 'x'" in planned.output


@pytest.mark.parametrize(("name", "value"), [("context_length", 1), ("rope.freq_base", 1.0)])
def test_what_only_one_of_the_two_took_is_refused(name, value, tmp_path):
    path = write_tiny(tmp_path / "model.gguf", metadata={f"llama.{name}": value})
    with pytest.raises(EdgetuneError, match=rf"llama.{name} is {value}, allowed are"):
        check_model(open_gguf(path))


SCALINGS = [{"attn_factor": 2.0}, {"type": "yarn", "factor": 4.0}, {"type": "yarn", "factor": 4.0, "attn_factor": 1.5},
            {"type": "linear", "factor": 2.0, "attn_factor": 0.5}]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_losses_are_llama_cpps_however_positions_are_scaled(architecture, scaling, tmp_path):
    """gemma3's blocks with a window, too."""
    keys = {f"{architecture}.rope.scaling.{name}": value for name, value in scaling.items()}
    keys[f"{architecture}.rope.scaling.original_context_length"] = 128
    path = write_tiny(tmp_path / "model.gguf", architecture, metadata=keys)
    tokens = np.random.default_rng(3).integers(10, 400, 90).astype(np.int32)
    with LlamaModel(path) as served:
        theirs = served.logits(tokens.tolist())
    decoder = open_decoder(Model(open_gguf(path)), {}, threads=1, max_tokens=90, max_length=90, precision="exact")
    ours = decoder.logits(collate([Example(tokens, np.ones(90, np.float32))]))
    assert np.abs(ours - theirs).max() < 1e-2 * np.abs(theirs).max()  # its keys and values are in 16 bits


@pytest.mark.parametrize("architecture", SHAPES)
def test_logits_are_llama_cpps(architecture, tiny_models):
    tokens = np.random.default_rng(3).integers(10, 400, 60).astype(np.int32)
    decoder = open_decoder(Model(open_gguf(tiny_models[architecture])), {}, threads=1, max_tokens=60, max_length=60)
    ours = decoder.logits(collate([Example(tokens, np.ones(60, np.float32))]))
    assert distance(ours, logits_of(tiny_models[architecture], tokens.tolist())) < 5e-4  # it looks GELU up in 16 bits


@pytest.mark.parametrize("length", [2, 3, 8, 16])
def test_a_context_shorter_than_the_sequences_answers(length, tmp_path):
    path = write_tiny(tmp_path / "model.gguf", n_context=length)
    with LlamaModel(path) as served, LlamaModel(write_tiny(tmp_path / "long.gguf"), context=length) as asked:
        assert served.context == asked.context == length
        assert np.allclose(served.logits([5, 6]), asked.logits([5, 6]))
        with pytest.raises(EdgetuneError, match=f"context of {length}"):
            served.logits([5] * (length + 1))


@pytest.mark.dev
@pytest.mark.parametrize(("key", "value"), [
    ("rope.dimension_count_swa", 64), ("rope.dimension_count_swa", 16), ("attention.key_length_swa", 64),
    ("attention.value_length_swa", 16), ("attention.sliding_window", 2**31 - 1)])
def test_windows_that_llama_cpp_would_abort_on_are_refused(key, value, tmp_path):
    path = write_tiny(tmp_path / "model.gguf", "gemma3", metadata={f"gemma3.{key}": value})
    with pytest.raises(EdgetuneError, match=f"gemma3.{key} is {value}, allowed"):
        check_model(open_gguf(path))
