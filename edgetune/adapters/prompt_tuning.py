"""Prompt tuning: embeddings of virtual tokens before each text (Lester et al. 2021, arXiv 2104.08691).

They begin as those of real tokens, which the paper found best: of a text, repeated or cut to their number, or tokens of
the vocabulary. Their keys and values are computed once, when the adapter is opened, and llama.cpp holds these like
those of a prompt that it has read already. P virtual tokens; D the model's width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import ClassVar

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Backend
from ..errors import UsageError
from ..formats.gguf import Gguf
from ..formats.shape import read_shape
from ..llamacpp.kv_state import KeyValues
from ..llamacpp.tokenizer import Tokenizer
from ..options import option
from .arrays import ArrayFamily, CarvedArrays
from .base import INPUT, LLAMA_CPP, Artifact, Carved, Shapes, register

COMMON = 5000  # tokens of which random ones are drawn: a vocabulary is stored with the most common ones first
TABLE = "token_embd.weight"


@register
@dataclass(frozen=True)
class PromptTuning(ArrayFamily):
    """Embeddings of virtual tokens before each text, for which a request computes nothing."""

    name: ClassVar[str] = "prompt-tuning"
    adapts: ClassVar[tuple[str, ...]] = (INPUT,)
    served_by: ClassVar[str] = LLAMA_CPP
    size: ClassVar[tuple[str, ...]] = ("prompt_tokens",)
    rate: ClassVar[float] = 100.0  # few numbers, each of which must go far: docs/results/retrieval.md
    prompt_tokens: int = option(16, "Virtual tokens before each text, with trained embeddings.", low=1, high=4096)
    prompt_text: str = option("", "Text whose embeddings are their start, repeated or cut [random tokens].")

    @property
    def virtual_tokens(self) -> int:
        return self.prompt_tokens

    def arrays(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        return {name: (self.prompt_tokens, *shape) for name, shape in shapes.items()}

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> Carved:  # noqa: ARG002
        return CarvedPrompt(self, shapes, arena, seed)

    def served_keys(self, found: Artifact, computed: Callable[[Artifact], KeyValues]) -> KeyValues:
        return computed(found)


class CarvedPrompt(CarvedArrays):
    def __init__(self, family: PromptTuning, shapes: Shapes, arena: Arena, seed: int) -> None:
        super().__init__(family, shapes, arena)
        self._family = family
        self._seed = seed

    def read_base(self, base: Gguf) -> None:
        rows = base.tensors[TABLE].taken(self._start(base))
        self.values["input"][:] = rows * np.float32(read_shape(base).embed_scale)

    def _start(self, base: Gguf) -> list[int]:
        """P tokens of the base's vocabulary."""
        count = self._family.prompt_tokens
        if not self._family.prompt_text:
            rng = np.random.default_rng(self._seed)
            vocabulary = min(COMMON, base.tensors[TABLE].shape[0])
            return [int(token) for token in rng.integers(0, vocabulary, count)]
        tokenizer = Tokenizer(base)
        tokens = tokenizer.encode(self._family.prompt_text)
        tokenizer.close()
        if not tokens:
            raise UsageError(f"prompt_text is {self._family.prompt_text!r}, which has no tokens", "give words")
        return [*islice(cycle(tokens), count)]

    def virtual_forward(self) -> np.ndarray:
        return self.values["input"]

    def virtual_backward(self, drows: np.ndarray) -> None:
        self.gradients["input"] += drows
