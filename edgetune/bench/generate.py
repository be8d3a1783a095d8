"""How fast llama.cpp reads a prompt and writes an answer, as `LlamaModel` uses it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from ..formats.bundle import open_bundle
from ..llamacpp.context import PARALLEL
from ..machine import device
from ..serving.llama import LlamaModel


def run(model: str | Path, *, prompt_tokens: int, tokens: int, adapter: Path | None = None, threads: int = 0,
        seed: int = 0) -> dict[str, Any]:
    """Read prompt_tokens random token ids, then `tokens` more, one at a time; after each one a token is sampled.

    What is sampled is dropped and a random id read in its place, so that no mark of an end cuts the measurement short.
    """
    gguf = open_bundle(model).gguf
    here = device.read_device()
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
    return {"bench": "generate", "device": here.model or here.cpu or here.machine, "cpu": here.cpu,
            "model": str(gguf.path),
            "adapter": str(adapter) if adapter else None, "threads": threads or here.cores,
            "options": {"prompt_tokens": prompt_tokens, "tokens": tokens, "seed": seed},
            "prompt_tokens_per_s": prompt_tokens / prompt_s, "tokens_per_s": tokens / tokens_s, "load_s": load_s,
            "peak_rss_mib": device.peak_rss() / 2**20}


def _read(served: LlamaModel, ids: list[int]) -> float:
    """Seconds to read what the cache does not hold of ids, and to sample a token."""
    began = time.perf_counter()
    for _ in served.generate(ids, max_tokens=1):
        pass
    return time.perf_counter() - began
