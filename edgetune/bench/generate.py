"""The speed of reading prompts and answering: one answer by llama.cpp, or many by our own engine or llama.cpp."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from ..formats.bundle import open_bundle
from ..formats.gguf import Gguf
from ..formats.shape import read_shape
from ..llamacpp.context import PARALLEL
from ..llamacpp.sampling import Sampling
from ..llamacpp.tokenizer import Tokenizer
from ..machine import device
from ..serving.batcher import KEPT, Batcher
from ..serving.llama import LlamaModel
from ..serving.rollouts.texts import Engine, TokenPrompts, adapter_of, answers

DRAWN = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def run(model: str | Path, *, prompt_tokens: int, tokens: int, adapter: Path | None = None, threads: int = 0,
        seed: int = 0) -> dict[str, Any]:
    """Read prompt_tokens random token ids, then `tokens` more, one at a time; after each one a token is sampled.

    What is sampled is dropped and a random id read in its place, so that no mark of an end cuts the measurement short.
    """
    gguf = open_bundle(model).gguf
    began = time.perf_counter()
    room = max(prompt_tokens + tokens + 1, 1 + PARALLEL)  # with less than a token a sequence llama.cpp aborts
    with LlamaModel(gguf, context=room, threads=threads or None) as served:
        if adapter is not None:
            served.load_adapter(adapter, adapter.name)
            served.use(adapter.name)
        n_vocab = served.tokenizer.n_vocab
        ids = np.random.default_rng(seed).integers(0, n_vocab, prompt_tokens + tokens).tolist()
        load_s = time.perf_counter() - began
        _read(served, ids[:1])  # brings the weights into memory
        served.reset()
        prompt_s = _read(served, ids[:prompt_tokens])
        tokens_s = sum(_read(served, ids[:n + 1]) for n in range(prompt_tokens, prompt_tokens + tokens))
    return _record(gguf, adapter, threads, {"prompt_tokens": prompt_tokens, "tokens": tokens, "seed": seed},
                   prompt_tokens_per_s=prompt_tokens / prompt_s, tokens_per_s=tokens / tokens_s, load_s=load_s)


def _record(gguf: Gguf, adapter: Path | None, threads: int, options: dict[str, int], **found: Any) -> dict[str, Any]:
    here = device.read_device()
    return {"bench": "generate", "device": here.name, "cpu": here.cpu, "model": str(gguf.path),
            "adapter": str(adapter) if adapter else None, "threads": threads or here.cores, "options": options, **found,
            "peak_rss_mib": device.peak_rss() / 2**20}


def _read(served: LlamaModel, ids: list[int]) -> float:
    """Seconds to read what the cache does not hold of ids, and to sample a token."""
    began = time.perf_counter()
    for _ in served.generate(ids, max_tokens=1):
        pass
    return time.perf_counter() - began


# ---- many answers at once ----


def many(model: str | Path, *, native: Engine | None, count: int, prompts: int, prompt_tokens: int, tokens: int,
         adapter: Path | None = None, threads: int = 0, seed: int = 0) -> dict[str, Any]:
    """`count` answers of `tokens` tokens to `prompts` prompts of random token ids, as many to each; none ends earlier.

    native: our own engine; None: llama.cpp answers, with `threads`. tokens_per_s: of the answers, by the time from the
    first prompt to the last answer, where weights are in memory. llama.cpp takes the likeliest tokens, which costs it
    least; our own engine draws from all, at temperature 1.
    """
    gguf = open_bundle(model).gguf
    ids = np.random.default_rng(seed).integers(0, read_shape(gguf).n_vocab, (prompts, prompt_tokens)).tolist()
    samples = count // prompts
    if native is not None:
        seconds = _native(gguf, ids, samples, tokens, adapter, native)
    else:
        seconds = _llama(gguf, ids, samples, tokens, adapter, threads)
    options = {"answers": samples * prompts, "prompts": prompts, "prompt_tokens": prompt_tokens, "tokens": tokens,
               "seed": seed}
    return _record(gguf, adapter, threads, options, engine="native" if native else "llama.cpp",
                   precision=native.precision if native else None, seconds=seconds,
                   tokens_per_s=samples * prompts * tokens / seconds)


def _native(gguf: Gguf, prompts: list[list[int]], samples: int, tokens: int, adapter: Path | None,
            engine: Engine) -> float:
    """Seconds."""
    opened = adapter_of(gguf, adapter)
    tokenizer = Tokenizer(gguf)
    first = TokenPrompts([[0]], [1], sampling=DRAWN)
    list(answers(gguf, tokenizer, opened, first, engine))  # brings the weights into memory
    asked = TokenPrompts(prompts, [tokens] * len(prompts), samples, DRAWN, ends=False)
    began = time.perf_counter()
    made = list(answers(gguf, tokenizer, opened, asked, engine))
    seconds = time.perf_counter() - began
    assert all(answered.rollout.tokens.size == tokens for answered in made)
    return seconds


def _llama(gguf: Gguf, prompts: list[list[int]], samples: int, tokens: int, adapter: Path | None,
           threads: int) -> float:
    """Seconds, PARALLEL answers at a time, which begin with what the cache has of their prompts."""
    room = min(len(prompts) * len(prompts[0]) + PARALLEL * (len(prompts[0]) + tokens + 1), read_shape(gguf).context)
    with LlamaModel(gguf, context=room, threads=threads or None, sequences=PARALLEL + KEPT) as served:
        if adapter is not None:
            served.load_adapter(adapter, adapter.name)
        setattr(served.tokenizer, "is_end", lambda _token: False)  # noqa: B010  # an answer has all of its tokens
        batcher = Batcher(served, parallel=PARALLEL, queue=len(prompts) * samples)
        batcher.start()
        try:
            name = adapter.name if adapter else None
            batcher.submit([0], adapter=name, max_tokens=1, seed=0).text()  # brings the weights into memory
            began = time.perf_counter()
            # without a seed, which would have each answer computed alone, so that it can be repeated
            asked = [batcher.submit(prompt, adapter=name, max_tokens=tokens) for prompt in prompts
                     for _ in range(samples)]
            for completion in asked:
                completion.text()
            return time.perf_counter() - began
        finally:
            batcher.stop(now=True)
