"""An answer in progress: a request, its progress, and the tokens of its next decode."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgetuneError
from . import kv_cache
from .completion import Completion
from .model import AnswerRequest

GROWTH = 16  # tokens that each answer must have room for when another one begins


@dataclass(eq=False)
class AnswerInProgress:
    """A request and how far it is."""

    completion: Completion
    request: AnswerRequest
    sequence: kv_cache.Sequence = field(default_factory=kv_cache.nowhere)
    first_at: float = 0.0  # when its first token was made, on the monotonic clock

    @property
    def pending(self) -> int:
        return len(self.request.tokens) - len(self.sequence.tokens)

    @property
    def measures(self) -> bool:
        """Whether log-probabilities of its prompt's tokens are still to be computed."""
        asked = self.request.echo and self.request.logprobs is not None
        return asked and len(self.completion.prompt_logprobs) < self.completion.prompt_tokens

    @property
    def running(self) -> bool:
        """Whether all of it is read, so that each decode gives a token."""
        return self.pending == 1 and self.completion.completion_tokens > 0

    @property
    def lane(self) -> AnswerInProgress | str | None:
        """The unit that takes turns: an answer that must repeat, or all others of an adapter."""
        return self if self.request.repeats else self.completion.adapter

    @property
    def piece(self) -> int:
        """Tokens that its next decode takes if it must repeat: up to a multiple of CUT in the prompt, then one each,
        also for an answer that is computed once more.
        """
        done = len(self.sequence.tokens)
        return max(1, min(self.completion.prompt_tokens - done, kv_cache.CUT - done % kv_cache.CUT))

    @property
    def growth(self) -> int:
        """Tokens to come for which there should be room."""
        return min(self.left, GROWTH)

    @property
    def left(self) -> int:
        """Tokens to come at most."""
        return self.request.budget - self.completion.completion_tokens

    def pick(self, logits: NDArray[np.float32]) -> int | None:
        """The next token by these logits; None: there is none, the completion has the error."""
        try:
            return self.request.sampler.pick(logits)
        except EdgetuneError as error:  # of its grammar
            self.completion.error = error
            return None
