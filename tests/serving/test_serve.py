"""edgetune.serving.llama, context and sampling against llama_cpp's own high-level class and against merged weights."""

import json

import llama_cpp
import numpy as np
import pytest
import tiny
from random_adapters import SEVEN, decided_prompts, random_pairs, tokens_of, write_adapter

from edgetune.errors import EdgetuneError, FormatError, MismatchError, UsageError
from edgetune.formats.gguf import open_gguf
from edgetune.llamacpp import library
from edgetune.llamacpp.context import BATCH, OUTPUTS, PARALLEL
from edgetune.llamacpp.sampling import Sampling
from edgetune.serving.llama import LlamaModel


@pytest.fixture(scope="module")
def served(tiny_llama):
    with LlamaModel(tiny_llama, threads=1) as served:
        yield served


@pytest.fixture(autouse=True)
def _clean(request):
    """Tests share one model; each finds it without adapters and with an empty cache."""
    if "served" in request.fixturenames:
        served = request.getfixturevalue("served")
        for name in served.adapters():
            served.unload(name)
        served.use(None)
        served.reset()


def reference_logits(path, tokens, n_ctx=512):
    """[T, V] by llama_cpp.Llama."""
    model = llama_cpp.Llama(str(path), n_ctx=n_ctx, n_batch=512, n_threads=1, logits_all=True, flash_attn=True,
                            verbose=False)
    model.eval(tokens)
    logits = model.scores[: len(tokens)].copy()
    model.close()
    return logits


def log_softmax(logits):
    z = logits.astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def merged_logits(base, pairs, scales, tokens, path):
    """Logits of an F32 model whose weights hold W + scale * B A."""
    source = open_gguf(base)
    weights = {name: tensor.f32() for name, tensor in source.tensors.items()}
    for stem, (a, b) in pairs.items():
        delta = scales[stem] * (b.astype(np.float64) @ a.astype(np.float64))
        weights[f"{stem}.weight"] = (weights[f"{stem}.weight"] + delta).astype(np.float32)
    metadata = {key: source.metadata[key] for key in source.metadata if key != "general.architecture"}
    return reference_logits(tiny.write_gguf(path, source.architecture, metadata, weights), tokens)


# ---- the base --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", list(tiny.SHAPES))
def test_logits_are_llama_cpps(tiny_models, architecture):
    tokens = tokens_of(60)
    with LlamaModel(tiny_models[architecture], threads=1) as served:
        got = served.logits(tokens)
    np.testing.assert_allclose(got, reference_logits(tiny_models[architecture], tokens), atol=1e-4)


@pytest.mark.dev
def test_smollm2_says_what_llama_cpp_says(smollm2, monkeypatch):
    monkeypatch.setattr("edgetune.llamacpp.library.cpu_features", str)  # as llama_cpp opens it
    model = llama_cpp.Llama(str(smollm2), n_ctx=512, n_threads=1, flash_attn=True, verbose=False)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name three colours."}]
    with LlamaModel(smollm2, context=512, threads=1) as served:
        prompt = served.tokenizer.encode(served.tokenizer.render(messages, add_generation_prompt=True), bos=True)
        expected = model.create_completion(prompt, max_tokens=24, temperature=0.0)["choices"][0]["text"]
        pieces = list(served.chat(messages, max_tokens=24))
    model.close()
    assert "".join(pieces) == expected
    assert len(pieces) > 5  # it streams


def test_logprobs_of_a_long_text(tmp_path):
    path = tiny.write_tiny(tmp_path / "long.gguf", n_context=1024)
    tokens = tokens_of(BATCH + OUTPUTS + 9)
    truth = log_softmax(reference_logits(path, tokens, n_ctx=1024))
    truth = np.array([0.0, *truth[np.arange(len(tokens) - 1), tokens[1:]]])
    wanted = np.random.default_rng(1).random(len(tokens)) < 0.3
    with LlamaModel(path, threads=1) as served:
        got = served.logprobs(tokens)
        some = served.logprobs(tokens, wanted)
        none = served.logprobs(tokens, np.zeros(len(tokens), np.bool_))
        assert served.logprobs([]).shape == (0,)
    assert got.dtype == np.float32
    for values, expected in ((got, truth), (some, np.where(wanted, truth, 0.0))):
        np.testing.assert_allclose(values, expected, atol=2e-2)  # keys, values and their sums are F16 in llama.cpp
        assert np.abs(values - expected).mean() < 1e-4
    assert not some[~wanted].any()
    assert not none.any()


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_a_known_beginning_is_not_computed_again(served):
    first = tokens_of(80)
    second = tokens_of(70) + tokens_of(25, seed=1)
    whole = served.logprobs(second)
    served.reset()
    served.logprobs(first)
    decoded: list[int] = []
    decode = served.cache.decode

    def counting():
        decoded.append(served.cache.batch.size)
        return decode()

    served.cache.decode = counting
    try:
        reused = served.logprobs(second, np.arange(95) > 80)
    finally:
        served.cache.decode = decode
    assert decoded == [94 - 64]  # by whole pieces, so that it repeats
    np.testing.assert_array_equal(reused[81:], whole[81:])


def test_streams_may_take_turns(served):
    prompts = decided_prompts(served, [12, 12], 12, [])
    alone = ["".join(served.generate(prompt, max_tokens=12)) for prompt in prompts]
    streams = [served.generate(prompt, max_tokens=12) for prompt in prompts]
    texts = ["", ""]
    for _ in range(12):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    assert [text + "".join(stream) for text, stream in zip(texts, streams, strict=True)] == alone
    assert alone[0] != alone[1]


@pytest.mark.parametrize(("architecture", "context", "longest"), [
    ("llama", 512, 9), ("llama", 512, 90), ("llama", 300, 280), ("gemma3", 128, 9),
])
def test_answers_together_are_answers_one_by_one(tiny_models, architecture, context, longest):
    lengths = [12 + longest * i // (PARALLEL + 7) for i in range(PARALLEL + 7)]
    budgets = [2 + i % 5 for i in range(len(lengths))]
    with LlamaModel(tiny_models[architecture], context=context, threads=1) as served:
        prompts = decided_prompts(served, lengths, max(budgets), tokens_of(11))
        alone = ["".join(served.generate(p, max_tokens=n)) for p, n in zip(prompts, budgets, strict=True)]
        together = dict(served.complete(prompts, budgets))
        again = dict(served.complete(prompts, budgets))
        assert dict(served.complete([], 5)) == {}
    assert [together[i] for i in range(len(prompts))] == alone
    assert again == together
    assert len(set(alone)) > len(prompts) // 2


def test_abandoned_answers_leave_nothing_behind(tiny_llama):
    with LlamaModel(tiny_llama, context=512, threads=1) as served:
        *prompts, long = decided_prompts(served, [25] * PARALLEL + [200], 4, [])
        expected = dict(served.complete(prompts, 4))
        answer = "".join(served.generate(long, max_tokens=4))
        assert next(served.complete(prompts, [1] + [6] * (PARALLEL - 1)))[0] == 0  # leaves the others half done
        served.cache.batch.add([5, 6, 7], 0, 0, np.ones(3, np.bool_))  # as an interrupt would leave it
        assert "".join(served.generate(long, max_tokens=4)) == answer
        assert dict(served.complete(prompts, 4)) == expected


# ---- adapters --------------------------------------------------------------------------------------------------------


def test_switching_adapters_equals_fresh_loads(served, tiny_llama, tmp_path):
    def measure(model):
        return model.logprobs(tokens_of(30), np.arange(30) > 20)  # the first 20 tokens come from the cache if they may

    files = {
        "a": write_adapter(tmp_path / "a.gguf", random_pairs(tiny_llama, dict.fromkeys(SEVEN, 4), 1), 8.0),
        "b": write_adapter(tmp_path / "b.gguf", random_pairs(tiny_llama, {"attn_q": 2, "ffn_down": 6}, 2), 8.0),
    }
    fresh: dict[str | None, np.ndarray] = {None: measure(served)}
    for name, file in files.items():
        with LlamaModel(tiny_llama, threads=1) as other:
            other.load_adapter(file, name)
            other.use(name)
            fresh[name] = measure(other)
    for name, file in files.items():
        served.load_adapter(file, name)
    assert served.adapters() == ["a", "b"]
    for name in ("a", "b", None, "b", "a", None):
        served.use(name)
        assert served.active == name
        np.testing.assert_array_equal(measure(served), fresh[name])
    served.use("a")
    served.unload("a")
    assert served.adapters() == ["b"]
    np.testing.assert_array_equal(measure(served), fresh[None])
    assert np.abs(fresh["a"] - fresh["b"]).max() > 0.1 < np.abs(fresh["a"] - fresh[None]).max()


@pytest.mark.parametrize(("alpha", "scale"), [(6.0, 1.0), (6.0, 0.5), (0.0, 1.0)])
def test_scale_is_alpha_over_each_tensors_rank(tiny_llama, tmp_path, alpha, scale):
    tokens = tokens_of(30)
    pairs = random_pairs(tiny_llama, {name: rank for rank, name in enumerate(SEVEN, start=1)}, 3)
    scales = {stem: scale * (alpha / a.shape[0] if alpha else 1.0) for stem, (a, _) in pairs.items()}
    with LlamaModel(tiny_llama, threads=1) as served:
        served.load_adapter(write_adapter(tmp_path / "ranks.gguf", pairs, alpha), "ranks", scale)
        served.use("ranks")
        got = served.logits(tokens)
    np.testing.assert_allclose(got, merged_logits(tiny_llama, pairs, scales, tokens, tmp_path / "m.gguf"), atol=2e-3)


def test_every_adapter_is_freed_once(tiny_llama, tmp_path, monkeypatch):
    file = write_adapter(tmp_path / "a.gguf", random_pairs(tiny_llama, {"attn_q": 2}, 7), 2.0)
    made = []
    freed = []
    llama = library.load()
    make = llama.llama_adapter_lora_init
    free = llama.llama_adapter_lora_free
    monkeypatch.setattr(llama, "llama_adapter_lora_init", lambda *given: made.append(make(*given)) or made[-1])
    monkeypatch.setattr(llama, "llama_adapter_lora_free", lambda pointer: freed.append(pointer) or free(pointer))
    with LlamaModel(tiny_llama, threads=1) as served:
        for name in ("a", "b"):
            served.load_adapter(file, name)
            served.use(name)
        served.unload("a")
        assert freed == made[:1]
    assert freed == made
    assert len(made) == 2


def test_a_folder_is_an_adapter(served, tiny_llama, tmp_path):
    write_adapter(tmp_path / "adapter.gguf", random_pairs(tiny_llama, {"attn_v": 2}, 4), 2.0)
    (tmp_path / "run.json").write_text(json.dumps({"seed": 0}))
    base = served.logits(tokens_of(5))
    served.load_adapter(tmp_path, "folder")
    served.use("folder")
    assert np.abs(served.logits(tokens_of(5)) - base).max() > 1e-3


def test_wrong_adapters_are_refused(served, tiny_llama, tmp_path):
    pairs = random_pairs(tiny_llama, {"attn_q": 2}, 5)
    good = write_adapter(tmp_path / "good.gguf", pairs, 2.0)
    other = write_adapter(tmp_path / "other.gguf", pairs, 2.0, edgetune__base_fingerprint="sha256:" + "0" * 64)
    ones = (np.ones((2, 96), np.float32), np.ones((64, 2), np.float32))
    wide = write_adapter(tmp_path / "wide.gguf", {"blk.0.attn_q": ones}, 2.0)
    far = write_adapter(tmp_path / "far.gguf", {"blk.9.attn_q": pairs["blk.0.attn_q"]}, 2.0)
    qwen = write_adapter(tmp_path / "qwen.gguf", pairs, 2.0, architecture="qwen2")
    for file in (other, wide, far, qwen):
        with pytest.raises(MismatchError):
            served.load_adapter(file, "x")
    empty = write_adapter(tmp_path / "empty.gguf", {}, 2.0)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(good.read_bytes()[:-64])
    for file in (empty, cut, tiny_llama, tmp_path / "absent.gguf"):
        with pytest.raises(EdgetuneError):
            served.load_adapter(file, "x")
    assert served.adapters() == []
    served.load_adapter(good, "good")
    with pytest.raises(UsageError, match="'good' is loaded already"):
        served.load_adapter(good, "good")
    with pytest.raises(UsageError, match="loaded are good"):
        served.use("best")
    with pytest.raises(UsageError, match="'best'"):
        served.unload("best")


# ---- sampling -----------------------------------------------------------------------------------------------


def test_a_seed_decides(served):
    def sample(seed):
        served.reset()
        return "".join(served.generate(tokens_of(8), max_tokens=20, temperature=1.2, top_k=0, top_p=1.0, seed=seed))

    assert sample(1) == sample(1) != sample(2)
    assert sample(None) == sample(0)


def test_narrow_filters_are_greedy(served):
    prompt = tokens_of(8)
    greedy = "".join(served.generate(prompt, max_tokens=16))
    for options in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
        served.reset()
        assert "".join(served.generate(prompt, max_tokens=16, temperature=5.0, **options)) == greedy


@pytest.mark.dev
def test_a_stop_string_ends_the_text_and_stays_out(smollm2):
    with LlamaModel(smollm2, context=256, threads=1) as served:
        prompt = "1, 2, 3, 4, 5, 6,"
        whole = "".join(served.generate(prompt, max_tokens=16))
        assert whole.startswith(" 7, 8, 9")
        assert "".join(served.generate(prompt, max_tokens=16, stop=[", 9"])) == " 7, 8"
        assert "".join(served.generate(prompt, max_tokens=16, stop=", 9")) == " 7, 8"
        assert "".join(served.generate(prompt, max_tokens=16, stop=["absent"])) == whole


# ---- limits and errors -----------------------------------------------------------------------------------------------


def test_generation_ends_with_budget_or_context(tiny_llama):
    with LlamaModel(tiny_llama, context=32, threads=1) as served:
        assert served.context == 32
        counted = []
        served.tokenizer.is_end = lambda token: counted.append(token) or False
        list(served.generate(tokens_of(10), max_tokens=5))
        assert len(counted) == 5
        list(served.generate(tokens_of(10), max_tokens=500))
        assert len(counted) == 5 + 22
        counted.clear()
        list(served.complete([tokens_of(10), tokens_of(30)], 500))
        assert len(counted) == 22 + 2


def test_text_that_cannot_fit_is_not_tokenized(tiny_llama, monkeypatch):
    """llama.cpp takes a minute for 1 MB of special tokens."""
    with LlamaModel(tiny_llama, context=32, threads=1) as served:
        longest = max((served.tokenizer.piece(i) for i in range(served.tokenizer.n_vocab)), key=len).decode()
        assert len(served.tokenizer.encode(longest * 31)) == 31  # the longest text that fits
        list(served.generate(longest * 31, max_tokens=1))
        monkeypatch.setattr(served.tokenizer, "encode", lambda *_, **__: pytest.fail("it was tokenized"))
        with pytest.raises(EdgetuneError, match=rf"{33 * len(longest)} characters do not fit the context of 32 tokens"):
            served.generate(longest * 33)


def test_generation_ends_at_an_end_token(served):
    taken: list[int] = []
    prompt = decided_prompts(served, [9], 8, [])[0]
    before = "".join(served.generate(prompt, max_tokens=8))

    def is_end(token):
        taken.append(token)
        return len(taken) == 4

  
    original = served.tokenizer.is_end
    served.tokenizer.is_end = is_end
    try:
        text = "".join(served.generate(prompt, max_tokens=8))
        taken.clear()
        together = dict(served.complete([prompt], 8))
    finally:
        served.tokenizer.is_end = original
    assert len(taken) == 4
    assert before.startswith(text)
    assert text != before
    assert together == {0: text}


def test_bad_values_get_one_sentence(served, tiny_llama):
    for options, words in (
        ({"max_tokens": 0}, "max_tokens is 0"), ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"), ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": -0.1}, "min_p is -0.1"), ({"top_k": -1}, "top_k is -1"), ({"seed": 2**32}, "seed is 4294967296"),
        ({"stop": [""]}, "stop string is empty"),
    ):
        with pytest.raises(UsageError, match=words):
            served.generate("hello", **options)
    with pytest.raises(UsageError, match="prompt is empty"):
        served.generate("")
    with pytest.raises(EdgetuneError, match="512 tokens do not fit the context of 512 with an answer"):
        served.generate(tokens_of(512))
    with pytest.raises(EdgetuneError, match="513 tokens do not fit the context of 512;"):
        served.logits(tokens_of(513))
    with pytest.raises(UsageError, match="max_tokens is 0"):
        served.complete(["hello"], [0])
    for measure in (served.logits, served.logprobs):
        with pytest.raises(UsageError, match="token ids"):
            measure([3, 416])
    with pytest.raises(UsageError, match="context is 513 tokens; choose from 2 to 512"):
        LlamaModel(tiny_llama, context=513)
    assert Sampling().check() == Sampling()


def test_bad_models_are_refused(tiny_llama, tmp_path):
    with pytest.raises(FormatError, match=r"absent\.gguf"):
        LlamaModel(tmp_path / "absent.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_llama.read_bytes()[:-5000])
    with pytest.raises(FormatError, match=r"cut\.gguf"):
        LlamaModel(cut)
