"""Several answers to one prompt, computed together: the prompt is read once, and each answer is a separate sequence."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..llamacpp.sampling import SEED_LIMIT, log_softmax
from .llama import LlamaModel
from .model import AnswerRequest

MOST = 256  # answers to a prompt
STOPPED = -1  # in place of a token, after a stop string


@dataclass(frozen=True)
class DrawnAnswer:
    """An answer. index: which of the answers to the prompt. tokens: its number of tokens, without the one that ends it.
    logprob: the sum of log p of all its tokens, natural, before temperature and the like, with that of its end. finish:
    "stop", or "length" where it was cut.
    """

    index: int
    text: str
    tokens: int
    logprob: float
    finish: str

    @property
    def likelihood(self) -> float:
        """The mean log p of a token."""
        return self.logprob / (self.tokens + (self.finish == "stop"))


class Draws:
    """The answers to a prompt as they end, in any order; to be exhausted or closed before any other call of `served`.
    tokens: of all answers so far, also of those that were not finished.

    count: of answers. seed: of the first; each has the next one. Options and errors are those of ServedModel.generate.
    """

    def __init__(self, served: LlamaModel, prompt: str | Sequence[int], count: int, *, max_tokens: int = 256,
                 seed: int = 0, stop: str | Iterable[str] = (), **sampling: Any) -> None:
        if not 1 <= count <= MOST:
            raise UsageError(f"samples is {count}", f"choose from 1 to {MOST}")
        sampling.setdefault("grammar", served.grammar_of(served.active) if served.structured else "")
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        first = served.prepare(prompt, max_tokens, stop, seed=seed, **sampling)
        self.tokens = 0
        self._served = served
        self._prompt = [*first.tokens]
        self._requests = [first, *(served.prepare(self._prompt, max_tokens, stop, seed=(seed + i) % SEED_LIMIT,
                                                  **sampling) for i in range(1, count))]
        self._logprobs = [0.0] * count
        self._texts = [""] * count
        self._made = [0] * count
        self._ended = [False] * count
        self._found = self._drawn()

    def __iter__(self) -> Iterator[DrawnAnswer]:
        return self._found

    def close(self) -> None:
        """Leaves out the answers that are not finished."""
        self._found.close()

    def _drawn(self) -> Generator[DrawnAnswer]:
        try:
            budgets = [request.budget for request in self._requests]
            for index, _ in self._served.cache.greedy([self._prompt] * len(budgets), budgets, self._is_end, self._pick):
                text = self._texts[index] + self._requests[index].text.flush()
                request = self._requests[index]
                is_whole = self._ended[index] or request.text.stopped or request.sampler.whole
                finish = "stop" if is_whole else "length"
                yield DrawnAnswer(index, text, self._made[index], self._logprobs[index], finish)
        finally:
            for request in self._requests:
                request.sampler.close()

    def _is_end(self, token: int) -> bool:
        return token == STOPPED or self._served.tokenizer.is_end(token)

    def _pick(self, index: int, logits: NDArray[np.float32]) -> int:
        """The next token of an answer; after a stop string the one that ends a turn."""
        request: AnswerRequest = self._requests[index]
        if request.text.stopped:
            return STOPPED
        token = request.sampler.pick(logits)
        self._logprobs[index] += float(log_softmax(logits)[token])
        self.tokens += 1
        if self._is_end(token):
            self._ended[index] = True
            return token
        self._made[index] += 1
        self._texts[index] += request.text.push(self._served.printed(token))
        return token
