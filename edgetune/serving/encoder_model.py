"""An encoder as a service's model: adapters by name, requests, and vectors of texts.

Questions that wait for one adapter are computed together.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..data.decisions import prompt_of, typed_in
from ..data.labelled import Read
from ..errors import UnsupportedError, UsageError
from ..formats.gguf import Gguf
from ..llamacpp.embedding import check_tokens
from ..llamacpp.sampling import Sampling
from ..objectives.labelling import Classified, Floats, Labelling
from .answering import Answering
from .classifier import asked
from .completion import Completion, OnPiece, TokenLogprob
from .encoder import Encoder, Reader
from .memory import bytes_to_read
from .model import MOST_LOGPROBS
from .question import Question
from .tool_calls import CallReader

AT_ONCE = 512  # tokens that are computed together: more are hardly quicker, and take memory


@dataclass(frozen=True)
class LabelRequest:
    """A question, and whether the log-probability of its answer is wanted, and those of how many labels. budget: any
    label is short enough.
    """

    read: Read
    budget: int
    logprobs: int | None = None

    @property
    def tokens(self) -> list[int]:
        return self.read.encoded.ids


class EncoderModel:
    """See Served. For one thread at a time, but for requests. name: of the model, for errors. Raises the errors of
    Encoder.
    """

    writes = False
    chat_template = ""
    calls_tools = False

    def __init__(self, gguf: Gguf, name: str, threads: int = 0) -> None:
        self.encoder = Encoder(gguf, threads, at_once=AT_ONCE)
        self.name = name
        self.tokenizer = self.encoder.tokenizer
        self.context = self.encoder.longest
        self.busy_bytes = self.encoder.busy_bytes  # before threads ask
        self._readers: dict[str, Reader] = {}

    def close(self) -> None:
        self._readers.clear()

    # ---- adapters -----------------------------------------------------------------------------------------------

    def bytes_to_load(self, path: Path) -> int:
        return bytes_to_read(path)

    def load_adapter(self, path: str | Path, name: str) -> None:
        if name in self._readers:
            raise UsageError(f"an adapter named {name!r} is loaded already", "unload it first or choose another name")
        self._readers[name] = self.encoder.adapter(path)

    def unload(self, name: str) -> None:
        self.check_adapter(name)
        del self._readers[name]

    def check_adapter(self, name: str | None) -> None:
        if name is not None and name not in self._readers:
            raise UsageError(f"no adapter named {name!r} is loaded",
                             f"loaded are {', '.join(self._readers)}" if self._readers else "load it first")

    def adapters(self) -> list[str]:
        return list(self._readers)

    def reader(self, name: str | None) -> Reader:
        """Returns an adapter. Raises UsageError for None: the encoder alone has learned nothing."""
        self.check_adapter(name)
        if name is None:
            raise UsageError(f"{self.name} has learned no answers yet",
                             "teach it: send corrections to /v1/feedback, or rows in a fine-tuning job")
        return self._readers[name]

    def system_of(self, name: str | None) -> str:  # noqa: ARG002 - an encoder reads none
        return ""

    def grammar_of(self, name: str | None) -> str:  # noqa: ARG002 - its answers have the form that they have
        return ""

    def labels_of(self, name: str | None) -> tuple[str, ...]:
        return self.reader(name).learned.labels

    # ---- requests, for any thread -------------------------------------------------------------------------------

    thinks = False

    def render(self, messages: Sequence[Any], tools: Sequence[Any] | None, adapter: str | None,  # noqa: ARG002
               enable_thinking: bool | None = None) -> str:  # noqa: ARG002
        """Returns the text of the user's last message, after the key of a typed question that it is asked about."""
        return prompt_of(typed_in(messages), asked(messages))

    def form_of(self, question: Question) -> str:
        """Refuses each form but its own."""
        if question.shown_tools:
            self._refuse("calls no tools")
        if question.schema is not None or question.grammar:
            self._refuse("gives answers in the form that it learned, not in a form that a request names")
        if question.echo:
            self._refuse("continues no prompt, so that it cannot echo one")
        return ""

    def call_reader(self, names: set[str]) -> CallReader:  # noqa: ARG002
        self._refuse("calls no tools")

    def _refuse(self, what: str) -> NoReturn:
        raise UnsupportedError(f"{self.name} is an encoder, which {what}", "leave the option out, or serve a model "
                               "that writes text")

    def prepare(self, prompt: str | Sequence[int], max_tokens: int, stop: str | Iterable[str],  # noqa: ARG002
                logprobs: int | None = None, echo: bool = False, among: Sequence[int] = (),  # noqa: ARG002
                **sampling: Any) -> LabelRequest:
        """Options of sampling are checked, and have no effect: the answer is the likeliest label."""
        Sampling(**{"seed": 0, **sampling}).check()
        if logprobs is not None and not 0 <= logprobs <= MOST_LOGPROBS:
            raise UsageError(f"logprobs is {logprobs} tokens", f"choose from 0 to {MOST_LOGPROBS}")
        text = prompt if isinstance(prompt, str) else self._text(prompt)
        return LabelRequest(self.encoder.read(text), self.context, logprobs)

    def _text(self, ids: Sequence[int]) -> str:
        """The text of token ids, without the marks around it."""
        check_tokens(ids, self.context, self.tokenizer.n_vocab)
        marks = (self.tokenizer.cls, self.tokenizer.sep)
        return self.tokenizer.decode(id for id in ids if id not in marks)

    def count(self, text: str) -> int:
        return len(self.tokenizer.encode(text)) - 2

    def embedder(self) -> EncoderVectors:
        return EncoderVectors(self.encoder)


class EncoderVectors:
    """Vectors of texts by an encoder: see serving.embedding.Vectors."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.size = encoder.longest
        self.width = encoder.width
        self.n_vocab = encoder.tokenizer.n_vocab

    def encode(self, text: str) -> list[int]:
        return self._encoder.tokenizer.encode(text)

    def truncate(self, tokens: list[int]) -> list[int]:
        return tokens if len(tokens) <= self.size else [*tokens[:self.size - 1], self._encoder.tokenizer.sep]

    def check(self, tokens: Sequence[int]) -> None:
        check_tokens(tokens, self.size, self.n_vocab)

    def embed(self, out: NDArray[np.float32], texts: Sequence[list[int]]) -> Generator[None]:
        """Fills `out` [n, D]; each turn of the iterator computes some of the texts."""
        for part in self._encoder.together(list(map(len, texts))):
            out[part] = self._encoder.vectors(texts[part])
            yield

    def close(self) -> None:
        """Does nothing: vectors are computed in the memory of answers."""


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
        learned = self.served.reader(adapter).learned
        request = self.served.prepare(prompt, max_tokens, stop, logprobs, echo, among, seed=seed or 0, **sampling)
        learned.asking(request.read)  # raises NotFoundError for a typed question that it did not learn
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
            question = self._waiting.popleft()
            first = self._working[0] if self._working else question
            (self._working if question.completion.adapter == first.completion.adapter else others).append(question)
        self._waiting.extendleft(reversed(others))

    def _step(self) -> None:
        reader = self.served.reader(self._working[0].completion.adapter)
        found = reader.classify([question.request.read for question in self._working])
        for question, answer in zip(self._working.copy(), found, strict=True):
            self._give(question, answer, reader.learned)

    def _give(self, question: QuestionInProgress, found: Classified, learned: Labelling) -> None:
        completion = question.completion
        typed = question.request.read.typed
        is_told = found.probabilities.size and (typed or learned.labels)  # an object of labels has its own only
        p = np.asarray(found.probabilities if is_told else [found.probability], np.float64)
        completion.among = np.log(np.maximum(p, np.finfo(np.float64).tiny))
        completion.completion_tokens = self.served.count(found.label)
        if question.request.logprobs is not None:
            options = learned.options_of(typed)
            first, labels = (options.first, options.labels) if options else (0, learned.labels)
            own = found.probabilities[first:first + len(labels)]
            completion.logprobs.append(_logprob(found, labels, own, question.request.logprobs))
        self._totals["prompt_tokens"] += completion.prompt_tokens
        self._totals["completion_tokens"] += completion.completion_tokens
        self._end(question, "stop", found.label)


def _logprob(found: Classified, labels: Sequence[str], p: Floats, count: int) -> TokenLogprob:
    """The whole answer as one token, whose number is that of the label, and the likeliest labels by their p."""
    best = np.argsort(-p, kind="stable")[:count]
    top = tuple((int(i), labels[i].encode(), _log(p[i])) for i in best)
    number = labels.index(found.label) if found.label in labels else 0
    return TokenLogprob(number, found.label.encode(), _log(found.probability), top)


def _log(p: float) -> float:
    return math.log(max(p, np.finfo(np.float64).tiny))
