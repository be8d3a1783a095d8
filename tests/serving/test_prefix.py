"""Adapters of keys and values, served by llama.cpp: logits and answers as our own engine has them, alone and together
with other adapters.
"""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from batchers import opened, started
from click.testing import CliRunner
from commands import run as command
from random_adapters import SEVEN, decided_prompts, distance, random_pairs, tokens_of, write_adapter

from edgetune.adapters.base import Artifact, Setting
from edgetune.adapters.prefix import Prefix
from edgetune.adapters.store import TOKENS, open_served, save_artifact
from edgetune.cli import cli
from edgetune.data.packing import Example, collate
from edgetune.errors import DataError, EdgetuneError, FormatError, MismatchError, UnsupportedError, UsageError
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


@pytest.mark.dev
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


def test_a_compiled_prompt_longer_than_the_context_changes_nothing(tiny_llama, tmp_path):
    """As for a gate, whose rows are shorter."""
    tokens = tokens_of(20)
    save_artifact(tmp_path / "a.gguf", replace(made(tiny_llama, size=70), facts={TOKENS: [9] * 70}),
                  open_gguf(tiny_llama))
    with LlamaModel(tiny_llama, context=64) as served:
        base = served.logits(tokens)
        served.load_adapter(tmp_path / "a.gguf", "a")
        served.use("a")
        np.testing.assert_array_equal(served.logits(tokens), base)


# ---- compiled prompts ------------------------------------------------------------------------------------------------

SYSTEM = "one word."  # fits a window of gemma3, and is no multiple of the pieces of answers that repeat


@pytest.fixture
def compiled(model, tmp_path):
    """A model, and an adapter that stands for SYSTEM in its chat template."""
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"messages": [{"role": "system", "content": SYSTEM},
                                                {"role": "user", "content": "anything"}]}))
    said = json.loads(command("lab", "compile-prompt", model, request, "-o", tmp_path / "out", "--json"))
    assert (tmp_path / "out" / "adapter.gguf").stat().st_size == said["bytes"]
    facts = json.loads(command("models", "info", tmp_path / "out", "--json"))
    assert facts["tokens_compiled"] == said["tokens"]
    assert "pairs" not in facts
    return model, tmp_path / "out", said["tokens"]


def test_a_compiled_prompt_answers_as_the_text_does(compiled):
    """To the last digit; nothing of it is computed again."""
    model, out, size = compiled
    chats = [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}] for text in ("hi", "on or off")]
    with LlamaModel(model, context=256, threads=1) as served:
        texts = [served.tokenizer.encode(served.tokenizer.render(chat, None, add_generation_prompt=True) + "off",
                                         bos=True) for chat in chats]
        expected = [served.logprobs(text) for text in texts]
        served.load_adapter(out, "out")
        served.use("out")
        wanted = np.r_[np.zeros(size, np.bool_), True]
        for text, logp in zip(texts, expected, strict=True):
            served.reset()
            assert text[:size] == list(served.prefix_of("out").tokens)
            after = np.arange(len(text)) > size  # what is before has no log p: it was not computed
            np.testing.assert_array_equal(served.logprobs(text, after)[after], logp[after])
        served.reset()
        computed: list[int] = []
        served.cache.before_decode = lambda: computed.append(served.cache.batch.size)
        list(served.cache.feed(texts[0][:size + 1], wanted))
        assert computed == [1]
        assert served.system_of("out") == SYSTEM
        assert served.context == 256


def test_other_texts_and_requests_at_once(compiled):
    """A text that begins otherwise is computed whole, and the prompt is there for the next one again."""
    model, out, size = compiled
    with opened(model, {"out": out}, 256) as served:
        begin = list(served.prefix_of("out").tokens)
        prompts = [[*begin, 70, 71, 72], [75, *tokens_of(20)], [*begin, 80, 81], begin[:size // 2]]
        served.use(None)
        expected = [served.logits(prompt)[-1] for prompt in prompts]
        served.use("out")
        for _ in range(2):
            for prompt, logits in zip(prompts, expected, strict=True):
                last = np.arange(len(prompt)) == len(prompt) - 1
                found = [part[-1].copy() for _, part in served.cache.feed(prompt, last)]
                assert distance(found[-1], logits) < 1e-3
        alone = ["".join(served.generate(prompt, max_tokens=6)) for prompt in prompts]
        assert dict(served.complete(prompts, 6)) == dict(enumerate(alone))
        served.use(None)
        for seed in (None, 3):
            with started(served) as batcher:
                for _ in range(2):
                    found = [batcher.submit(prompt, adapter="out", max_tokens=6, seed=seed) for prompt in prompts]
                    assert [each.text() for each in found] == alone
                assert found[0].cached_tokens >= size


@pytest.mark.parametrize("seed", [None, 3])
def test_a_compiled_prompt_is_restored_once(compiled, seed):
    """Requests that follow share its cells."""
    model, out, _ = compiled
    with opened(model, {"out": out}, 256) as served, started(served) as batcher:
        restored = []
        restore = served.cache.restore
        served.cache.restore = lambda *given: restored.append(restore(*given))
        begin = list(served.prefix_of("out").tokens)
        for i in range(3):
            batcher.submit([*begin, 70 + i, 71, 72], adapter="out", max_tokens=2, seed=seed).text()
        assert len(restored) == 1


def test_a_prompt_that_is_longer_than_a_window_is_refused(tiny_models, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("word " * 200)
    said = command("lab", "compile-prompt", tiny_models["gemma3"], path, "-o", tmp_path / "out",
                   code=UsageError.exit_code)
    assert re.search(r"the prompt has \d+ tokens, and the model sees 24", said)
    assert not (tmp_path / "out").exists()


def test_a_damaged_list_of_tokens_is_refused(tiny_llama, tmp_path):
    base = open_gguf(tiny_llama)
    save_artifact(tmp_path / "a.gguf", replace(made(tiny_llama), facts={TOKENS: [1, 2]}), base)
    with pytest.raises(FormatError, match="its tokens are not those of its keys"):
        open_served(tmp_path / "a.gguf", base, lambda _: {})


@pytest.mark.parametrize(("change", "says"), [
    (lambda tensors: tensors.pop("blk.0.keys"), "other blocks or widths"),
    (lambda tensors: tensors.update({"blk.0.keys": tensors["blk.0.keys"][..., :-2]}), "other blocks or widths"),
    (lambda tensors: tensors.update({"blk.1.keys": tensors["blk.1.keys"][:, 1:]}), r"blk\.1\.keys of shape"),
    (lambda tensors: tensors.update({"blk.1.values": tensors["blk.1.keys"]}), r"blk\.1\.values of shape")])
def test_keys_of_another_model_are_refused(tiny_llama, tmp_path, change, says):
    artifact = made(tiny_llama)
    change(artifact.tensors)
    save_artifact(tmp_path / "a.gguf", artifact, open_gguf(tiny_llama))
    with LlamaModel(tiny_llama, context=64) as served, pytest.raises(MismatchError, match=says):
        served.load_adapter(tmp_path / "a.gguf", "a")


@pytest.mark.parametrize(("name", "text", "says"), [
    ("none.txt", None, "none.txt cannot be read"), ("none.json", None, "none.json does not exist"),
    ("wrong.json", "{", "wrong.json is damaged"), ("bytes.txt", b"\xff\xfe", "bytes.txt cannot be read"),
    ("row.json", '{"messages": []}', "messages")])
def test_a_prompt_that_cannot_be_read_is_refused(tiny_llama, tmp_path, name, text, says):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    result = CliRunner().invoke(cli, ["compile-prompt", str(tiny_llama), str(tmp_path / name), "-o",
                                      str(tmp_path / "out")])
    assert result.exit_code in (DataError.exit_code, FormatError.exit_code)
    assert says in result.output
