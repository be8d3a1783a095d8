"""A prompt that is compiled: the keys and values of what every request begins with, computed once and stored.

The result is an adapter of the family prefix that names the tokens it stands for. A text that begins with these tokens
continues from them, as if the model had just read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.base import Artifact, Setting
from ..adapters.prefix import Prefix
from ..adapters.store import COMPILED, TOKENS, base_name, save_adapter
from ..data.around import instructed
from ..errors import UnsupportedError, UsageError
from ..formats.bundle import Bundle
from ..formats.shape import read_shape
from ..llamacpp.context import common
from ..llamacpp.kv_state import read_keys
from ..llamacpp.tokenizer import Tokenizer
from ..models.structure import DecoderStructure
from .llama import LlamaModel

QUESTIONS = ("a", "Zero 0")  # two that begin differently: what is before them does not depend on the question


@dataclass(frozen=True)
class CompiledPrompt:
    """What every request begins with. system: its system message; tools: as in a request; None: none."""

    system: str
    tools: Sequence[Mapping[str, Any]] | None = None

    def tokens(self, tokenizer: Tokenizer) -> list[int]:
        """The tokens before the first word of any question. Raises UsageError where there are none."""
        asked = [tokenizer.encode(tokenizer.render(instructed([{"role": "user", "content": text}], self.system),
                                                   self.tools, add_generation_prompt=True), bos=True)
                 for text in QUESTIONS]
        count = common(*asked)
        if not count:
            raise UsageError("the model's chat template begins with the question", "use a model whose prompt is first")
        return asked[0][:count]


def compile_prompt(bundle: Bundle, prompt: CompiledPrompt, out: Path, threads: int = 0) -> int:
    """Writes the adapter to the new folder `out`. Returns the number of tokens that it stands for.

    Raises EdgetuneError for a prompt that is longer than the model's context or its windows, and where memory or disk
    refuse.
    """
    gguf = bundle.gguf
    tokenizer = Tokenizer(gguf)
    tokens = prompt.tokens(tokenizer)
    tokenizer.close()
    shape = read_shape(gguf)
    cache = DecoderStructure(shape).cache
    if cache is None or cache.states:
        raise UnsupportedError(f"{gguf.path} has blocks without keys, whose memory of a prompt cannot be stored yet",
                               "send the prompt with each request")
    narrowest = min((window for window in shape.windows if window), default=shape.context)
    if len(tokens) >= min(shape.context, narrowest):
        raise UsageError(f"the prompt has {len(tokens)} tokens, and the model sees {min(shape.context, narrowest)}",
                         "shorten it")
    with LlamaModel(gguf, context=len(tokens) + 1, threads=threads or None) as served:
        for _ in served.cache.feed(tokens, np.zeros(len(tokens), np.bool_), repeats=True):
            pass
        found = read_keys(served.cache.save(0), shape.windows)
    family = Prefix(prefix_tokens=len(tokens)).check()
    artifact = Artifact(tensors={f"blk.{block}.keys": np.stack(pair) for block, pair in found.items()},
                        family=family.name, setting=Setting(family.options(), [], [0, shape.n_layer]),
                        facts={TOKENS: tokens})
    record = {"status": COMPILED, "system": prompt.system, "options": {"family": family.name, **family.options()},
              "base": {"name": base_name(gguf), "path": str(bundle.path.absolute()), "fingerprint": bundle.fingerprint,
                       "architecture": gguf.architecture}}
    save_adapter(out, artifact, gguf, record, "F16")  # as llama.cpp has them
    return len(tokens)
