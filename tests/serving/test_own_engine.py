"""Adapters that llama.cpp cannot apply, served by our own engine: logits and answers as it has them in training, alone
and together with other adapters.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchers import opened, started
from random_adapters import SEVEN, decided_prompts, distance, random_pairs, tokens_of, write_adapter
from small_families import OPTIONS, small

from edgetune.adapters.base import Setting
from edgetune.adapters.store import read_artifact, save_artifact
from edgetune.data.packing import Example, collate
from edgetune.errors import EdgetuneError, FormatError, MismatchError, NumericsError, UnsupportedError
from edgetune.formats.bundle import open_bundle
from edgetune.formats.gguf import open_gguf
from edgetune.formats.shape import read_shape
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.models.structure import DecoderStructure
from edgetune.serving.llama import LlamaModel
from edgetune.serving.own_engine import PASS, own_memory
from edgetune.serving.rollouts.forward import open_decoder
from edgetune.serving.rollouts.texts import Engine, TokenPrompts, answers
from edgetune.training.trainer import Trainer

NAMES = ("houlsby", "molora")
ROUNDED = 0.03  # by bf16, which the engine computes with here, and training does not


def saved(model: Path, name: str, folder: Path, seed: int = 0) -> Path:
    """An adapter of random values."""
    trainer = Trainer(open_bundle(model), family=small(name), steps=1, **OPTIONS)
    rng = np.random.default_rng(seed)
    carved: Any = trainer.decoder.adapter
    for value in carved.values.values():
        value[:] = rng.standard_normal(value.shape) / value.shape[-1]**0.5
    trainer.save(folder)
    return folder


@pytest.fixture(params=["llama", "qwen3", "gemma3", "gemma4", "lfm2", "lfm2moe", "qwen35"])
def model(request, tiny_models):
    return tiny_models[request.param]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def in_training(model, folder, tokens):
    """Logits [T, V] as training has them."""
    gguf = open_gguf(model)
    decoder = open_decoder(gguf, read_artifact(folder, gguf), threads=1, max_tokens=256, max_length=256)
    return decoder.logits(collate([Example(np.array(tokens, np.int32), np.ones(len(tokens), np.float32))]))


def usual_distance(found, expected):
    """The median of all tokens': where experts are near each other, rounding chooses another one."""
    return np.median([distance(one, other) for one, other in zip(found, expected, strict=True)])


def keeps_states(model):
    return bool(DecoderStructure(read_shape(open_gguf(model))).cache.states)


def natively(model, folder, prompts, count):
    """The tokens of greedy answers by generate --engine native."""
    gguf = open_gguf(model)
    found = answers(gguf, Tokenizer(gguf), read_artifact(folder, gguf), TokenPrompts(prompts, [count] * len(prompts),
                                                                                     ends=False),
                    Engine(2**40, "all", threads=1, backend="cpu"))
    return {answer.rollout.prompt: answer.rollout.tokens.tolist() for answer in found}


@pytest.mark.dev
def test_logits_are_those_of_training(model, name, tmp_path):
    """Of a text at once, of one that is continued, and of one that begins otherwise; then of the base."""
    folder = saved(model, name, tmp_path / "a")
    tokens = tokens_of(3 * PASS + 7, seed=1)
    with LlamaModel(model, context=256, threads=1) as served:
        base = served.logits(tokens)
        served.load_adapter(folder, "a")
        served.use("a")
        assert served.engine == "native"
        expected = in_training(model, folder, tokens)
        assert usual_distance(served.logits(tokens), expected) < ROUNDED
        assert usual_distance(served.logits(tokens[:PASS - 3]), expected[:PASS - 3]) < ROUNDED
        other = [*tokens[:20], *tokens_of(30, seed=2)]
        assert usual_distance(served.logits(other), in_training(model, folder, other)) < ROUNDED
        assert distance(expected, base) > 0.2
        np.testing.assert_array_equal(served.logits(other), served.logits(other))
        served.unload("a")
        assert served.engine == "llama.cpp"
        np.testing.assert_array_equal(served.logits(tokens), base)


@pytest.mark.dev
def test_answers_are_those_of_generate_native(model, name, tmp_path):
    """One by one, many at once by `complete`, and many at once by a batcher with adapters of llama.cpp."""
    folders = {"own": saved(model, name, tmp_path / "own"), "other": saved(model, "houlsby", tmp_path / "other", 1)}
    pairs = random_pairs(model, dict.fromkeys(SEVEN, 4), 3)
    folders["lora"] = write_adapter(tmp_path / "lora.gguf", pairs, 8.0, architecture=open_gguf(model).architecture)
    rows = []
    with opened(model, folders, 512) as served:
        for adapter in folders:
            served.use(adapter)
            prompts = decided_prompts(served, [14, 40, 90, 14, 25], 10, tokens_of(9))
            alone = [generated(served, prompt) for prompt in prompts]
            if adapter != "lora":
                native = natively(model, folders[adapter], prompts, 10)
                assert alone == [text_of(served, native[i]) for i in range(len(prompts))]
            assert dict(served.complete(prompts, 10)) == dict(enumerate(alone))
            rows += [(adapter, prompt, text) for prompt, text in zip(prompts, alone, strict=True)]
        assert len({text for _, _, text in rows}) > 5
        with started(served) as batcher:
            for seed in (7, None):
                asked = [batcher.submit(prompt, adapter=adapter, max_tokens=10, seed=seed)
                         for adapter, prompt, _ in rows]
                assert [each.text() for each in asked] == [text for _, _, text in rows]
            # where states are kept only after pieces of prompts, and these are shorter, none need be found
            assert keeps_states(model) or sum(each.cached_tokens for each in asked) > 0
            batcher.unload("own")
            assert batcher.submit(rows[-1][1], adapter="lora", max_tokens=10).text() == rows[-1][2]


def test_a_text_that_begins_alike_continues_an_earlier_state(tiny_models, tmp_path):
    """A state cannot become that of fewer tokens, so only pieces of a prompt are not computed again."""
    model = tiny_models["lfm2"]
    with opened(model, {"a": saved(model, "houlsby", tmp_path / "a")}, 512) as served:
        served.use("a")
        stem = tokens_of(100)
        prompts = decided_prompts(served, [120, 125, 101], 8, stem)
        expected = [generated(served, prompt) for prompt in prompts]
        with started(served) as batcher:
            for cached in (0, 56):
                for prompt, text in zip(prompts, expected, strict=True):
                    asked = batcher.submit(prompt, adapter="a", max_tokens=10)
                    assert asked.text() == text
                    assert asked.cached_tokens >= cached


def generated(served, prompt):
    served.reset()
    return "".join(served.generate(prompt, max_tokens=10))


def text_of(served, tokens):
    return b"".join(map(served.printed, tokens)).decode("utf-8", "replace")


def test_logprobs_stops_and_seeds_are_those_of_any_adapter(tiny_llama, tmp_path):
    folder = saved(tiny_llama, "houlsby", tmp_path / "a")
    prompt = tokens_of(20)
    with opened(tiny_llama, {"a": folder}, 256) as served, started(served) as batcher:
        expected = in_training(tiny_llama, folder, prompt)[-1]
        asked = batcher.submit(prompt, adapter="a", max_tokens=1, logprobs=5)
        asked.text()
        best = expected - np.log(np.exp(expected - expected.max()).sum()) - expected.max()
        assert asked.logprobs[0].token == int(expected.argmax())
        assert asked.logprobs[0].logprob == pytest.approx(best.max(), abs=0.02)
        assert len(asked.logprobs[0].top) == 5
        drawn = [batcher.submit(prompt, adapter="a", max_tokens=20, temperature=1.5, seed=seed).text()
                 for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        whole = batcher.submit(prompt, adapter="a", max_tokens=20, seed=1, temperature=1.5).text()
        stop = whole[len(whole) // 2]
        stopped = batcher.submit(prompt, adapter="a", max_tokens=20, seed=1, temperature=1.5, stop=stop)
        assert stopped.text() == whole[:whole.index(stop)]
        echo = batcher.submit(prompt, adapter="a", max_tokens=0, echo=True, logprobs=0)
        echo.text()
        of_prompt = in_training(tiny_llama, folder, prompt)
        shifted = of_prompt - of_prompt.max(-1, keepdims=True)
        logp = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        assert [each.logprob for each in echo.prompt_logprobs[1:]] == pytest.approx(
            [float(logp[i, token]) for i, token in enumerate(prompt[1:])], abs=0.05)


def test_grammars_are_obeyed(tiny_llama, tmp_path):
    with LlamaModel(tiny_llama, context=128, threads=1) as served:
        served.load_adapter(saved(tiny_llama, "molora", tmp_path / "a"), "a")
        served.use("a")
        texts = {"".join(served.generate(tokens_of(9, seed), grammar='root ::= "yes" | "no"')) for seed in range(8)}
        assert texts <= {"yes", "no"}


def test_what_it_cannot_serve_is_refused_in_a_sentence(tiny_llama, tmp_path):
    folder = saved(tiny_llama, "houlsby", tmp_path / "a")
    broken = saved(tiny_llama, "molora", tmp_path / "b")
    with opened(tiny_llama, {"a": folder, "b": broken}, 64) as served:
        with pytest.raises(UnsupportedError, match=r"family houlsby has no scale, and 0.5 is given"):
            served.load_adapter(folder, "c", 0.5)
        assert served.adapters() == ["a", "b"]
        served.use("a")
        with pytest.raises(EdgetuneError, match="64"):
            served.logits(tokens_of(70))
        served.use("b")
        decoder: Any = served.cache.other._adapters["b"]
        next(iter(decoder.adapter.values.values()))[:] = np.inf
        with pytest.raises(NumericsError, match="not finite"):
            served.logits(tokens_of(10))
        served.use("a")
        assert np.isfinite(served.logits(tokens_of(10))).all()


def test_a_damaged_adapter_is_refused(tiny_llama, tmp_path):
    gguf = open_gguf(tiny_llama)
    found = read_artifact(saved(tiny_llama, "houlsby", tmp_path / "a"), gguf)
    wide = {**vars(found.setting), "options": {"adapter_width": 5}}
    save_artifact(tmp_path / "wide.gguf", replace(found, setting=Setting(**wide)), gguf)
    with LlamaModel(tiny_llama, context=64, threads=1) as served:
        with pytest.raises(MismatchError, match="arrays of other sizes"):
            served.load_adapter(tmp_path / "wide.gguf", "wide")
        raw = (tmp_path / "a" / "adapter.gguf").read_bytes()
        (tmp_path / "nan.gguf").write_bytes(raw[:-4] + np.float32(np.nan).tobytes())
        with pytest.raises(FormatError, match="family houlsby has values that are not finite"):
            served.load_adapter(tmp_path / "nan.gguf", "nan")
        assert served.adapters() == []
        assert np.isfinite(served.logits(tokens_of(5))).all()


@pytest.mark.parametrize("architecture", ["llama", "lfm2"])
def test_its_memory_is_known_before(architecture, tiny_models, tmp_path):
    model = tiny_models[architecture]
    folder = saved(model, "houlsby", tmp_path / "a")
    pairs = write_adapter(tmp_path / "lora.gguf", random_pairs(model, {"attn_q": 4}, 3), 8.0)
    with LlamaModel(model, context=512, threads=1) as served:
        before = served.busy_bytes
        assert own_memory(served.base, [pairs], 512, threads=1) == 0
        said = served.bytes_to_load(folder)
        served.load_adapter(folder, "a")
        taken = served.busy_bytes - before
        assert taken == own_memory(served.base, [folder, pairs], served.cache.size, threads=1) <= said
        again = served.bytes_to_load(folder)
        served.load_adapter(folder, "b")
        assert served.busy_bytes - before - taken < again < said
