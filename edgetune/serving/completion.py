"""An answer in progress, as the caller sees it."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..llamacpp.sampling import log_softmax
from ..llamacpp.tokenizer import Tokenizer

MODEL = "model"  # the source of an answer that no other source gave


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer or a prompt: its bytes, its natural log-probability (None: a prompt begins with it), and
    those of the likeliest tokens there.
    """

    token: int
    piece: bytes
    logprob: float | None
    top: tuple[tuple[int, bytes, float], ...] = ()


def logprob_of(token: int, logits: NDArray[np.float32], count: int, tokenizer: Tokenizer) -> TokenLogprob:
    """Log-probabilities of a token, from these logits, float32 [V], before anything changed them."""
    logp = log_softmax(logits)
    ids = np.argpartition(-logp, min(count, len(logp) - 1))[:count]
    ids = ids[np.lexsort((ids, -logp[ids]))]
    top = tuple((int(i), tokenizer.piece(int(i)), float(logp[i])) for i in ids)
    return TokenLogprob(token, tokenizer.piece(token), float(logp[token]), top)


class Completion:
    """An answer that is being made: iterate over its pieces of text, or take `text()`; both wait for them.

    finish: None while it lasts. "stop": the model ended it, or a stop string. "length": max_tokens are there, or the
    context is full. "cancelled". "error": `error` says why, and waiting for text raises it.
    prompt: token ids, of a model that writes text. cached_tokens: of the prompt's, those that were in the cache.
    among: log-probabilities of the tokens that were asked for, instead of text. source: who answered; details: what
    that source says of the answer, by names for the API.
    """

    def __init__(self, adapter: str | None, prompt_tokens: int, wake: Callable[[], None],
                 on_piece: OnPiece | None) -> None:
        self.id = uuid.uuid4().hex
        self.adapter = adapter
        self.prompt: Sequence[int] = ()
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.logprobs: list[TokenLogprob] = []  # if they were requested
        self.prompt_logprobs: list[TokenLogprob] = []  # likewise, complete before the first piece
        self.among: NDArray[np.float64] = np.empty(0)
        self.finish: str | None = None
        self.error: Exception | None = None
        self.cancelled = False
        self.inside_thinking: bool | None = None  # whether the prompt has begun it; None: the model does not think
        self.source = MODEL
        self.details: dict[str, str | float] = {}
        self._wake = wake
        self._on_piece = on_piece
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[str]:
        while (piece := self._pieces.get()) is not None:
            yield piece
        self._pieces.put(None)  # for whoever asks again
        if self.error:
            raise self.error

    def text(self) -> str:
        """Waits for the answer and returns it whole. Raises its error, if it failed."""
        return "".join(self)

    def cancel(self) -> None:
        """End it soon; the text so far stays. For any thread."""
        self.cancelled = True
        self._wake()

    def give(self, piece: str | None) -> bool:
        """Gives a piece, or None at the end; returns whether the receiver took it. For the batcher."""
        self._pieces.put(piece)
        try:
            if self._on_piece:
                self._on_piece(self, piece)
        except Exception as error:  # theirs; others' answers must continue
            self.error = error
        return self.error is None

    def end(self, finish: str, piece: str) -> None:
        """Gives the last piece, if any, and ends. For the batcher."""
        if piece:
            self.give(piece)
        self.finish = "error" if self.error else finish
        self.give(None)


OnPiece = Callable[[Completion, "str | None"], None]  # a piece of text; None: the end
