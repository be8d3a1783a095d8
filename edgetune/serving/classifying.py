"""Many questions answered at once by an encoder: those of one adapter that wait are computed together."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..objectives.labelling import Classified
from .answering import Answering
from .completion import Completion, OnPiece, TokenLogprob
from .encoder_model import EncoderModel, LabelRequest

TOGETHER = 64  # questions until others have a turn
PARALLEL = 256  # that are taken besides those that may wait: a question costs no memory


@dataclass(eq=False)
class QuestionInProgress:
    """A question in progress."""

    completion: Completion
    request: LabelRequest


class Classifying(Answering[QuestionInProgress]):
    """Answers with labels, or JSON, by adapters of an encoder. The options of a model that writes text are checked and
    have no effect; an answer is one piece.
    """

    served: EncoderModel

    def __init__(self, served: EncoderModel, *, queue: int) -> None:
        super().__init__(served, PARALLEL, queue)

    def submit(self, prompt: str | Sequence[int], *, adapter: str | None = None, max_tokens: int = 256,
               seed: int | None = None, stop: str | Iterable[str] = (), logprobs: int | None = None,
               echo: bool = False, among: Sequence[int] = (), on_piece: OnPiece | None = None,
               **sampling: Any) -> Completion:
        """Answers a question with an adapter. Raises UsageError for the encoder alone, and as `Answering.submit`.

        logprobs: the completion has the log-probability of the answer, and those of this many likeliest labels. Its
        `among` has those of all labels, in the order of Served.labels_of; of an answer with several fields its own.
        """
        self.served.reader(adapter)
        request = self.served.prepare(prompt, max_tokens, stop, logprobs, echo, among, seed=seed or 0, **sampling)
        completion = Completion(adapter, len(request.tokens), self._notify, on_piece)
        return self._take_in(QuestionInProgress(completion, request))

    def facts(self) -> dict[str, Any]:
        """Counts since the start, and the current state, as of a Batcher; there is no cache."""
        return {**self._totals, "waiting": len(self._waiting), "working": len(self._working), "tokens_per_s": 0.0,
                "cells_used": 0, "cells": 0}

    def _admit(self) -> None:
        """Takes those that wait longest, and as many others as can be computed with them, by the same adapter."""
        others: deque[QuestionInProgress] = deque()
        while self._waiting and len(self._working) < TOGETHER:
            asked = self._waiting.popleft()
            first = self._working[0] if self._working else asked
            (self._working if asked.completion.adapter == first.completion.adapter else others).append(asked)
        self._waiting.extendleft(reversed(others))

    def _step(self) -> None:
        reader = self.served.reader(self._working[0].completion.adapter)
        found = reader.classify([asked.request.read for asked in self._working])
        for asked, answer in zip(self._working.copy(), found, strict=True):
            self._give(asked, answer, reader.learned.labels)

    def _give(self, asked: QuestionInProgress, found: Classified, labels: Sequence[str]) -> None:
        completion = asked.completion
        p = np.asarray(found.probabilities if labels else [found.probability], np.float64)
        completion.among = np.log(np.maximum(p, np.finfo(np.float64).tiny))
        completion.completion_tokens = self.served.count(found.label)
        if asked.request.logprobs is not None:
            completion.logprobs.append(_logprob(found, labels, asked.request.logprobs))
        self._totals["prompt_tokens"] += completion.prompt_tokens
        self._totals["completion_tokens"] += completion.completion_tokens
        self._end(asked, "stop", found.label)


def _logprob(found: Classified, labels: Sequence[str], count: int) -> TokenLogprob:
    """The whole answer as one token, whose number is that of the label, and the likeliest labels."""
    best = np.argsort(-found.probabilities, kind="stable")[:count]
    top = tuple((int(i), labels[i].encode(), _log(found.probabilities[i])) for i in best)
    number = labels.index(found.label) if found.label in labels else 0
    return TokenLogprob(number, found.label.encode(), _log(found.probability), top)


def _log(p: float) -> float:
    return math.log(max(p, np.finfo(np.float64).tiny))
