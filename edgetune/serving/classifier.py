"""An encoder with trained heads answers with labels or JSON, by edgetune's own engine.

Letters: S labels asked for, k labels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters.base import Artifact
from ..adapters.heads import CLASSES, HeadKind, heads_of_fields
from ..adapters.store import read_artifact
from ..data import labelled
from ..data.packing import Example, collate
from ..data.slots import Form
from ..data.tags import best_tags
from ..errors import FormatError, UsageError
from ..formats.bundle import open_bundle
from ..formats.gguf import Gguf
from ..llamacpp.wordpiece import Encoded, WordPiece
from ..models.networks import open_network
from .rollouts.forward import open_passes

MOST_TOKENS = 1024  # of questions that are computed together
TINY = np.float32(1e-30)  # the least probability whose logarithm is taken
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Classified:
    """The answer to a question and its probability. probabilities: of all labels, in the order of `labels`, [k]; empty
    where the answer is made of several.
    """

    label: str
    probability: float
    probabilities: Floats


class Classifier:
    """An encoder and an adapter that `edgetune train` made of it; close it, or use it as a context manager. For one
    thread at a time.

    >>> with edgetune.Classifier("minilm", "my-labels") as served:
    ...     served.classify(["turn on the light"])[0].label

    model: a GGUF, a bundle or a model's name. adapter: a folder, or its adapter.gguf. threads: 0 for one a physical
    core. precision: of the products, as in training. labels: those that it knows; () where answers have several fields.
    Raises FormatError for an adapter without labels, MismatchError for one of another base, and the errors of
    open_bundle and open_network.
    """

    def __init__(self, model: str | Path | Gguf, adapter: str | Path, threads: int = 0,
                 precision: str = "fast") -> None:
        gguf = model if isinstance(model, Gguf) else open_bundle(model).gguf
        found = read_artifact(adapter, gguf)
        self.labels, self._form = learned(found, str(adapter))
        heads = _heads(found, self.labels, self._form, str(adapter))
        self._first = np.cumsum([0, *(head.size for head in heads)])  # of each head's labels
        self._tokenizer = WordPiece(gguf)
        network = open_network(gguf)
        self._longest = network.structure.longest or MOST_TOKENS
        self._passes = open_passes(network, found, threads=threads, max_tokens=max(MOST_TOKENS, self._longest),
                                   max_length=self._longest, precision=precision, heads=heads)

    def close(self) -> None:
        """Does nothing: the memory goes with the last reference."""

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def classify(self, questions: Sequence[str]) -> list[Classified]:
        """The answer to each question. Of one that is too long the beginning counts; an empty one raises UsageError."""
        asked = [_stripped(question) for question in questions]
        encoded = [labelled.encode(self._tokenizer, question, self._longest) for question in asked]
        found: list[Classified] = []
        for part in _together([len(one.ids) for one in encoded]):
            batch = collate([self._example(one) for one in encoded[part]], share=False)
            p = np.exp(self._passes.labels(batch))
            for question, one, (_, rows) in zip(asked[part], encoded[part], batch.parts(), strict=True):
                found.append(self._answer(question, one, p[rows]))
        return found

    def _example(self, encoded: Encoded) -> Example:
        """One that asks for all labels: of each head of classes, and of each token if there are tags."""
        tokens = np.array(encoded.ids, np.int32)
        closed = self._first[:-1] if self._form is None else self._first[:-2]
        if self._form is None:
            return Example(tokens, np.zeros(tokens.size, np.float32), document=closed.astype(np.int32))
        return Example(tokens, np.ones(tokens.size, np.float32), document=closed.astype(np.int32),
                       labels=np.full(tokens.size, self._first[-2], np.int32))

    def _answer(self, question: str, encoded: Encoded, p: Floats) -> Classified:
        """The answer by the probabilities [S, labels] of an example's labels."""
        if self._form is None:
            best = int(p[0].argmax())
            return Classified(self.labels[best], float(p[0, best]), p[0].copy())
        *closed, first, end = self._first
        bounds = enumerate(pairwise([*closed, first]))
        fields = [p[number, begin:until] for number, (begin, until) in bounds]
        of_tokens = p[len(fields):, first:end]
        tagged = best_tags(np.log(np.maximum(of_tokens, TINY)), question, encoded.places)
        answer = self._form.answer([int(field.argmax()) for field in fields], tagged, question, encoded.places)
        is_word = [begin < until for begin, until in encoded.places]
        of_tags = of_tokens[np.arange(len(tagged)), tagged][is_word]
        return Classified(answer, float(np.prod([*(field.max() for field in fields), *of_tags])), p[:0, 0])

    # ---- as a model that writes text ----------------------------------------------------------------------------

    def chat(self, messages: Sequence[dict[str, Any]], **_options: Any) -> Iterator[str]:
        """Yields the answer to the user's last message. The options of a model that writes text have no effect."""
        asked = [message for message in messages if message.get("role") == "user"]
        if not asked:
            raise UsageError("no message is the user's", "ask something")
        yield self.classify([labelled.text_of(asked[-1])])[0].label

    def generate(self, prompt: str, **_options: Any) -> Iterator[str]:
        """Yields the answer to a prompt."""
        yield self.classify([prompt])[0].label


def _stripped(question: str) -> str:
    if not question.strip():
        raise UsageError("a question is empty", "ask something")
    return question.strip()


def _together(sizes: Sequence[int]) -> Iterator[slice]:
    """Slices of questions that are computed together, of MOST_TOKENS tokens at most, or one question."""
    begin = 0
    total = 0
    for number, size in enumerate(sizes):
        if total and total + size > MOST_TOKENS:
            yield slice(begin, number)
            begin, total = number, 0
        total += size
    if total:
        yield slice(begin, len(sizes))


def learned(found: Artifact, source: str) -> tuple[tuple[str, ...], Form | None]:
    """The labels of an adapter, or the form of its answers. Raises FormatError for one without either. source: names
    it.
    """
    try:
        labels = tuple(map(str, found.objective.get("labels") or ()))
        form = Form.of_json(written) if (written := found.objective.get("form")) else None
    except (KeyError, TypeError) as error:
        raise FormatError(f"{source} is damaged: its form is not readable ({error})",
                          "take an earlier adapter") from None
    if not labels and form is None:
        raise FormatError(f"{source} has no labels", "name an adapter that edgetune train made of an encoder")
    return labels, form


def _heads(found: Artifact, labels: Sequence[str], form: Form | None, source: str) -> tuple[HeadKind, ...]:
    """The heads that answer. Raises FormatError where the adapter lacks one."""
    heads = heads_of_fields(form.sizes, form.tags) if form else (replace(CLASSES, size=len(labels)),)
    for head in heads:
        values = found.tensors.get(f"head.{head.parameters}")
        if values is None or not np.isfinite(values).all():
            raise FormatError(f"{source} has no head for {head.size} {head.parameters}", "take an earlier adapter")
    return heads
