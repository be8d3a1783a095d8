"""Vectors of texts: what a model makes of their tokens, pooled to one vector a text and normalised.

An encoder sees a text whole, so each decode takes texts that are whole. A decoder reads its text in pieces: llama.cpp
computes the logits of every token that is pooled, [T, V], which should not be many at a time.
Letters: D width of a vector, T tokens of a decode, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgetuneError, UsageError
from ..machine.device import thread_count
from .context import BATCH, LlamaBatch
from .library import load
from .tokenizer import cut

PIECE = 32  # tokens of a decoder's decode
TOGETHER = 16  # texts of a decode
KEPT = BATCH  # cells of the context that stays; a longer text gets one for itself
Pooling = Literal["mean", "first", "last"]  # of the states of a text's tokens; first: of [CLS]


@dataclass(eq=False)
class _Text:
    index: int
    tokens: list[int]
    sequence: int
    done: int = 0  # tokens that are computed


class Embedder:
    """Vectors by `model`, a llama_model of which no adapter is used. Close it before the model. For one thread at a
    time; `encode` is for any.

    size: tokens that a text may have. whole: it is an encoder. encode: a tokenizer in place of llama.cpp's. threads:
    0 for one a physical core. Raises EdgetuneError if llama.cpp cannot make a context.
    """

    def __init__(self, model: int, size: int, *, whole: bool, encode: Callable[[str], list[int]] | None = None,
                 pooling: Pooling = "mean", threads: int = 0) -> None:
        self._llama: ModuleType = load()
        self._model = model
        self._vocabulary = self._llama.llama_model_get_vocab(model)
        self._threads = thread_count(threads)
        self._encode = encode
        self._pooling = pooling
        self._whole = whole
        self._kept = 0  # the llama_context that stays
        self.size = min(size, BATCH) if whole else size
        self.width = int(self._llama.llama_model_n_embd(model))
        self.n_vocab = int(self._llama.llama_vocab_n_tokens(self._vocabulary))
        self.room = self.size if whole else PIECE
        self._batch = LlamaBatch(self._llama)
        if whole:
            self._kept = self._open(self.size)  # so that one who cannot have it learns it at the start

    def close(self) -> None:
        """Free llama.cpp's memory; a decoder's embedder may be used again."""
        if self._kept:
            self._llama.llama_free(self._kept)
        self._kept = 0

    def encode(self, text: str) -> list[int]:
        """Token ids of a text with the marks that the model wants around it; what spells a mark stays text."""
        return self._encode(text) if self._encode else cut(self._llama, self._vocabulary, text, marks=True)

    def truncate(self, tokens: list[int]) -> list[int]:
        """The beginning of a text that is too long, with the mark that the model wants at its end."""
        if len(tokens) <= self.size:
            return tokens
        is_mark = self._llama.llama_vocab_is_control(self._vocabulary, tokens[-1])
        end = tokens[-1:] if is_mark else []
        return tokens[: self.size - len(end)] + end

    def check(self, tokens: Sequence[int]) -> None:
        """Raises UsageError as check_tokens does."""
        check_tokens(tokens, self.size, self.n_vocab)

    def embed(self, out: NDArray[np.float32], texts: Sequence[list[int]]) -> Generator[None]:
        """Fill `out` [n, D] with the vectors of n texts (checked); each turn of the iterator is one decode.

        Raises EdgetuneError where llama.cpp cannot compute.
        """
        out[:] = 0
        longest = max(map(len, texts))
        if self._whole or longest + PIECE <= KEPT:
            handle = self._kept = self._kept or self._open(KEPT)
        else:
            handle = self._open(longest + PIECE)
        try:
            yield from self._compute(handle, out, texts)
        finally:
            if handle != self._kept:
                self._llama.llama_free(handle)
        out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)  # of a sum and of a mean it is the same

    # ---- llama.cpp ----------------------------------------------------------------------------------------------

    def _open(self, size: int) -> int:
        llama = self._llama
        options = llama.llama_context_default_params()
        options.n_ctx = size
        options.n_batch = self.room
        options.n_ubatch = self.room
        options.n_seq_max = min(TOGETHER, size)
        options.kv_unified = True
        options.embeddings = True
        options.pooling_type = 0  # llama.cpp would pool each decode by itself
        options.n_threads = self._threads
        options.n_threads_batch = self._threads
        handle = llama.llama_init_from_model(self._model, options)
        if not handle:
            raise EdgetuneError(f"llama.cpp cannot make a context of {size} tokens for vectors",
                                "free memory, or embed shorter texts")
        return int(handle)

    def _compute(self, handle: int, out: NDArray[np.float32], texts: Sequence[list[int]]) -> Iterator[None]:
        memory = self._llama.llama_get_memory(handle)  # None: an encoder has no cache
        if memory:
            self._llama.llama_memory_clear(memory, False)
        waiting = deque(enumerate(texts))
        free = list(range(min(TOGETHER, self.room)))
        active: list[_Text] = []
        while active or waiting:
            parts = self._fill(active, waiting, free)
            states = self._decode(handle)
            start = 0
            for text, count in parts:
                self._pool(out[text.index], states[start : start + count], text, count)
                start += count
                text.done += count
                if text.done == len(text.tokens):
                    active.remove(text)
                    free.append(text.sequence)
                    if memory:
                        self._llama.llama_memory_seq_rm(memory, text.sequence, -1, -1)
            yield

    def _fill(self, active: list[_Text], waiting: deque[tuple[int, list[int]]], free: list[int]) -> list[
            tuple[_Text, int]]:
        """Put tokens into the batch; whose they are, and how many, in their order."""
        self._batch.size = 0
        parts = []
        for text in active:
            parts.append((text, self._add(text)))
        while waiting and free and self._batch.size < self.room:
            index, tokens = waiting[0]
            if self._whole and self._batch.size + len(tokens) > self.room:
                break
            waiting.popleft()
            active.append(_Text(index, tokens, free.pop()))
            parts.append((active[-1], self._add(active[-1])))
        return parts

    def _add(self, text: _Text) -> int:
        part = text.tokens[text.done : text.done + self.room - self._batch.size]
        self._batch.add(part, text.done, text.sequence, np.ones(len(part), np.bool_))
        return len(part)

    def _decode(self, handle: int) -> NDArray[np.float32]:
        """The states of the batch, [T, D], as a view."""
        count = self._batch.size
        self._batch.struct.n_tokens = count
        code = self._llama.llama_decode(handle, self._batch.struct)
        if code != 0:
            raise EdgetuneError(f"llama.cpp could not compute the vectors of {count} tokens (llama_decode: {code})",
                                "free memory, or embed shorter texts")
        found = ctypes.cast(self._llama.llama_get_embeddings(handle), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(found, (count, self.width))

    def _pool(self, into: NDArray[np.float32], states: NDArray[np.float32], text: _Text, count: int) -> None:
        """Add to the vector [D] of a text what its next tokens' states [n, D] contribute."""
        if self._pooling == "mean":
            into += states.sum(0)
        elif self._pooling == "first" and text.done == 0:
            into += states[0]
        elif self._pooling == "last" and text.done + count == len(text.tokens):
            into += states[-1]


def check_tokens(tokens: Sequence[int], size: int, n_vocab: int) -> None:
    """Raises UsageError for a text without tokens, with more than `size`, or with one outside the vocabulary."""
    if not tokens:
        raise UsageError("a text is empty", "give each at least one token")
    if len(tokens) > size:
        raise UsageError(f"a text has {len(tokens)} tokens, {size} is the most here", "divide it")
    if not 0 <= min(tokens) <= max(tokens) < n_vocab:
        wrong = next(token for token in tokens if not 0 <= token < n_vocab)
        raise UsageError(f"a token id is {wrong}", f"token ids must be from 0 to {n_vocab - 1}")
