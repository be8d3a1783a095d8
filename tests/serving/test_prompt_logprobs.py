"""Log-probabilities of prompts, computed in pieces beside answers of others."""


import llama_cpp
import numpy as np
import pytest
from random_adapters import random_pairs, tokens_of, write_adapter
from tiny import write_tiny

from edgetune.errors import EdgetuneError, UsageError
from edgetune.serving.batcher import Batcher
from edgetune.serving.llama import LlamaModel

CONTEXT = 256
LENGTHS = (1, 2, 17, 90, 130, 90)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of floats, whose sums hardly depend on what is computed beside them."""
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", n_context=CONTEXT)


def test_they_are_llama_cpps_whatever_is_computed_beside_them(model, tmp_path):
    prompts = [tokens_of(length, seed) for seed, length in enumerate(LENGTHS)]
    prompts[-1] = prompts[3]  # which the cache holds by then
    truth = llama_cpp.Llama(str(model), n_ctx=CONTEXT, logits_all=True, verbose=False)
    logits = []
    for prompt in prompts:
        truth.reset()
        truth.eval(prompt)
        logits.append(truth.scores[: len(prompt)].astype(np.float64))
    truth.close()
    with LlamaModel(model, context=CONTEXT, threads=1, sequences=8) as served:
        served.load_adapter(write_adapter(tmp_path / "a", random_pairs(model, {"attn_q": 4}, 1), 8.0), "a")
        batcher = Batcher(served, parallel=6, queue=20)
        batcher.start()
        others = [batcher.submit(tokens_of(20, 9), adapter=name, max_tokens=60) for name in ("a", None)]
        asked = [batcher.submit(prompt, echo=True, logprobs=3, max_tokens=i % 2) for i, prompt in enumerate(prompts)]
        for i, completion in enumerate(asked):
            completion.text()
            assert (completion.finish, completion.cached_tokens) in (("length", 0), ("stop", 0))
            assert len(completion.logprobs) == i % 2  # the end of an answer too
            first, *found = completion.prompt_logprobs
            assert (first.logprob, first.top) == (None, ())
            assert [first.token, *(each.token for each in found)] == prompts[i]
            logp = logits[i] - np.log(np.exp(logits[i]).sum(-1, keepdims=True))
            expected = logp[np.arange(len(found)), prompts[i][1:]]
            np.testing.assert_allclose([each.logprob for each in found], expected, atol=0.01)
            for row, each in zip(logp, found, strict=False):
                np.testing.assert_allclose([value for _, _, value in each.top], np.sort(row)[:-4:-1], atol=0.01)
        assert all(len(other.text()) > 0 for other in others)
        batcher.stop()


def test_no_more_logits_are_held_than_are_reserved(model, monkeypatch):
    with LlamaModel(model, context=CONTEXT, threads=1) as served:
        rows: list[int] = []
        decode = served.cache.decode
        monkeypatch.setattr(served.cache, "decode", lambda: rows.append(len(logits := decode())) or logits)
        batcher = Batcher(served, parallel=4, queue=20)
        batcher.start()
        asked = [batcher.submit(tokens_of(60, seed), echo=True, logprobs=0, max_tokens=0) for seed in range(4)]
        assert [completion.text() for completion in asked] == [""] * 4
        assert all(len(completion.prompt_logprobs) == 60 for completion in asked)
        assert max(rows) <= served.cache.sequences < sum(rows)
        batcher.stop()


def test_no_tokens_are_refused_without_the_prompts(model):
    with LlamaModel(model, context=CONTEXT, threads=1) as served:
        with pytest.raises(UsageError, match="max_tokens is 0"):
            served.prepare([5], 0, ())
        served.prepare(tokens_of(CONTEXT), 0, (), echo=True).sampler.close()
        with pytest.raises(EdgetuneError, match="with an answer"):
            served.prepare(tokens_of(CONTEXT), 1, (), echo=True)
