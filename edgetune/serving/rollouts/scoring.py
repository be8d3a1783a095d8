"""A decoder that computes log-probabilities of given texts, within a memory budget.

If memory is short, fewer tokens are computed at once; if that does not suffice, weights are streamed from the file.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...adapters.base import Artifact
from ...adapters.lora import Lora
from ...backends.arena import arena_bytes
from ...backends.opening import open_backend
from ...errors import UsageError, size_text
from ...formats.gguf import Gguf
from ...machine import device
from ...models.decoder import Decoder, Model
from ...models.stream import sizes
from .forward import forward_buffers, forward_run, open_decoder
from .texts import GROWTH, Engine

_MIB = 1 << 20


def open_scorer(gguf: Gguf, adapter: Artifact | Lora, engine: Engine, *, longest: int, at_once: int) -> Decoder:
    """A decoder for documents of up to `longest` tokens, which computes `at_once` tokens together where memory has
    room for them.

    Raises UsageError where the engine's budget has no room for one document, and the errors of `open_decoder`.
    """
    model = Model(gguf)
    ops = open_backend(engine.backend, device.thread_count(engine.threads))
    device.trim()
    process = device.rss() + GROWTH
    weights = sizes(gguf.tensors.values(), model.shape.n_layer)

    def needs(tokens: int, streamed: int) -> int:
        run = forward_run(model, adapter, threads=engine.threads, max_tokens=tokens, max_length=longest,
                          precision=engine.precision)
        return process + weights.in_memory(streamed, tokens) + arena_bytes(forward_buffers(model, run, ops))

    counts = [*_halved(max(at_once, longest), longest)]
    for streamed in range(model.shape.n_layer + 1):
        for tokens in counts:
            if needs(tokens, streamed) <= engine.budget:
                return open_decoder(model, adapter, threads=engine.threads, max_tokens=tokens, max_length=longest,
                                    precision=engine.precision, ops=ops, streamed=streamed)
    least = -(-needs(longest, model.shape.n_layer) // _MIB)
    raise UsageError(f"this does not fit: the log-probabilities of a text of {longest} tokens need "
                     f"{size_text(least * _MIB)}, the budget is {size_text(engine.budget)} ({engine.asked})",
                     f"give it --memory {least}M, or shorten the rows")


def _halved(count: int, least: int) -> Iterator[int]:
    """Yields `count`, its half, its quarter, ... and `least`."""
    while count > least:
        yield count
        count //= 2
    yield least
