"""Adapters of keys and values, served by llama.cpp: logits and answers as our own engine has them, alone and together
with other adapters.
"""

import numpy as np
import pytest
from batchers import opened, started
from decoder_cases import distance
from random_adapters import SEVEN, decided_prompts, random_pairs, tokens_of, write_adapter

from edgetune.adapters.base import Artifact, Setting
from edgetune.adapters.prefix import Prefix
from edgetune.adapters.store import save_artifact
from edgetune.data.packing import Example, collate
from edgetune.errors import EdgetuneError, UnsupportedError, UsageError
from edgetune.formats.gguf import open_gguf
from edgetune.formats.shape import read_shape
from edgetune.llamacpp.kv_state import MAGIC, read_keys, saved_keys
from edgetune.serving.llama import LlamaModel
from edgetune.serving.rollouts.forward import open_decoder

P = 5


def made(model, seed=0, size=P):
    """An adapter of random keys and values."""
    shape = read_shape(open_gguf(model))
    rng = np.random.default_rng(seed)
    tensors = {f"blk.{i}.keys": rng.standard_normal((2, size, shape.d_kv)).astype(np.float32)
               for i in range(shape.n_layer)}
    return Artifact(tensors=tensors, family=Prefix.name,
                    setting=Setting(Prefix(prefix_tokens=size).options(), [], [0, shape.n_layer]))


def saved(model, path, seed=0, size=P):
    path.parent.mkdir(exist_ok=True)
    save_artifact(path, made(model, seed, size), open_gguf(model))
    return path


@pytest.fixture(params=["llama", "qwen2", "qwen3", "gemma3"])
def model(request, tiny_models):
    return tiny_models[request.param]


def ours(model, artifact, tokens):
    """Logits [T, V] by our own engine."""
    decoder = open_decoder(open_gguf(model), artifact, threads=1, max_tokens=128, max_length=128)
    return decoder.logits(collate([Example(np.array(tokens, np.int32), np.ones(len(tokens), np.float32))]))


def test_logits_are_those_of_our_own_engine(model, tmp_path):
    """Of a text at once, of one that is continued, and of one that begins otherwise; then of the base."""
    tokens = np.random.default_rng(1).integers(0, 400, 40).tolist()
    with LlamaModel(model, context=128) as served:
        base = served.logits(tokens)
        served.load_adapter(saved(model, tmp_path / "a.gguf"), "a")
        served.use("a")
        expected = ours(model, made(model), tokens)
        for count in (9, 40, 3):
            assert distance(served.logits(tokens[:count]), expected[:count]) < 3e-3  # keys are half floats there
        assert distance(served.logits(tokens), base) > 0.1
        assert served.context == 128 - P
        with pytest.raises(EdgetuneError, match=str(128 - P)):
            served.logits([1] * 125)
        served.unload("a")
        np.testing.assert_array_equal(served.logits(tokens), base)
        assert served.context == 128


def test_many_prompts_at_once_have_the_answers_of_each_alone(model, tmp_path):
    with LlamaModel(model, context=256, threads=1) as served:
        served.load_adapter(saved(model, tmp_path / "a.gguf"), "a")
        served.use("a")
        prompts = decided_prompts(served, [14, 40, 14, 25], 8, tokens_of(9))
        alone = ["".join(served.generate(prompt, max_tokens=8)) for prompt in prompts]
        assert dict(served.complete(prompts, 8)) == dict(enumerate(alone))
        assert ["".join(served.generate(prompt, max_tokens=8)) for prompt in prompts] == alone


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("seed", [None, 7])
def test_requests_of_several_adapters_at_once(architecture, seed, tiny_models, tmp_path):
    """Two of keys and values, a LoRA, and the base: the cache keeps them apart."""
    model = tiny_models[architecture]
    files = {"a": saved(model, tmp_path / "a.gguf"), "b": saved(model, tmp_path / "b.gguf", 1, 20),
             "lora": write_adapter(tmp_path / "lora.gguf", random_pairs(model, dict.fromkeys(SEVEN, 4), 3), 8.0,
                                   architecture=architecture)}
    with opened(model, files, 256) as served:
        rows = []
        for adapter in (None, *files):
            served.use(adapter)
            for prompt in decided_prompts(served, [14, 33, 14], 8, tokens_of(9)):
                served.reset()
                rows.append((adapter, prompt, "".join(served.generate(prompt, max_tokens=8))))
        assert len({text for *_, text in rows}) > len(rows) // 2
        served.use(None)
        with started(served) as batcher:
            for _ in range(3):  # the second time from what the first left in the cache
                found = [batcher.submit(prompt, adapter=name, max_tokens=8, seed=seed) for name, prompt, _ in rows]
                assert [each.text() for each in found] == [text for *_, text in rows]
            assert {each.prompt_tokens for each in found} == {14, 33}
            facts = batcher.facts()
            assert facts["cells_used"] <= facts["cells"]


def test_log_probabilities_of_a_prompt(tiny_llama, tmp_path):
    tokens = tokens_of(20, 3)
    with LlamaModel(tiny_llama, context=128, threads=1) as served:
        served.load_adapter(saved(tiny_llama, tmp_path / "a.gguf"), "a")
        served.use("a")
        expected = served.logprobs(tokens)
        served.use(None)
        with started(served) as batcher:
            done = batcher.submit(tokens, adapter="a", max_tokens=1, echo=True, logprobs=0)
            done.text()
        found = [one.logprob for one in done.prompt_logprobs[1:]]
        np.testing.assert_allclose(found, expected[1:], atol=1e-4)


def test_a_full_cache_makes_room_for_it(tiny_llama, tmp_path):
    files = {"a": saved(tiny_llama, tmp_path / "a.gguf"), "b": saved(tiny_llama, tmp_path / "b.gguf", 1, 30)}
    with opened(tiny_llama, files, 96) as served, started(served, parallel=2) as batcher:
        prompts = [tokens_of(40, i) for i in range(4)]
        texts = [batcher.submit(prompt, adapter=name, max_tokens=6).text() for prompt in prompts for name in files]
        again = [batcher.submit(prompt, adapter=name, max_tokens=6) for prompt in prompts for name in files]
        assert [each.text() for each in again] == texts


def test_what_llama_cpp_saves_is_read_and_written(model):
    windows = read_shape(open_gguf(model)).windows
    with LlamaModel(model, context=64) as served:
        served.logits([5, 9, 2, 30, 7])
        written = served.cache.save(0)
        found = read_keys(written, windows)
        assert [array.shape[0] for pair in found.values() for array in pair] == [5] * 2 * len(windows)
        assert saved_keys(bytes(written[:MAGIC]), windows, found) == written
        assert served.cache.magic == bytes(written[:MAGIC])
        damaged = bytearray(written)
        damaged[8] = 2
        with pytest.raises(UnsupportedError, match="2 streams"):
            read_keys(damaged, windows)


def test_more_virtual_tokens_than_the_context_are_refused(tiny_llama, tmp_path):
    path = saved(tiny_llama, tmp_path / "a.gguf", size=70)
    with LlamaModel(tiny_llama, context=64) as served, pytest.raises(UsageError, match=r"70 virtual tokens.*64"):
        served.load_adapter(path, "a")
