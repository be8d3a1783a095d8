"""An encoder with trained heads answers with labels or JSON: llama.cpp computes a question's states, numpy the rest.

Letters: n questions, k labels of a head, T tokens of a question, D the width of a vector.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters.base import Artifact
from ..adapters.store import read_artifact, save_gguf
from ..data import labelled
from ..data.slots import Form
from ..data.tags import best_tags
from ..errors import FormatError, UsageError
from ..formats.named import find_model
from ..llamacpp.wordpiece import Encoded, WordPiece
from .embedding import EncoderFile

TINY = np.float32(1e-30)  # the least probability whose logarithm is taken
Floats = NDArray[np.float32]
Head = tuple[Floats, Floats]  # W [k, D], b [k]


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

    model: a GGUF or a model's name. adapter: a folder, or its adapter.gguf. threads: 0 for one a physical core. labels:
    those that it knows; () where answers have several fields. Raises FormatError for an adapter without labels,
    MismatchError for one of another base, and the errors of EncoderFile.
    """

    def __init__(self, model: str | Path, adapter: str | Path, threads: int = 0) -> None:
        with ExitStack() as opened:
            self._file = EncoderFile(find_model(model), threads)
            opened.callback(self._file.close)
            found = read_artifact(adapter, self._file.gguf)
            self.labels, self._form = learned(found, str(adapter))
            self._heads = _heads(found, self.labels, self._form, self._file.embedder.width, str(adapter))
            self._tokenizer = WordPiece(self._file.gguf)
            if any(pair.b.any() for pair in found.pairs.values()):
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "pairs.gguf"
                    save_gguf(path, found.pairs, self._file.gguf)
                    self._file.embedder.use(path)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Free llama.cpp's memory; closing twice is fine."""
        self._opened.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def classify(self, questions: Sequence[str]) -> list[Classified]:
        """The answer to each question. Of one that is too long the beginning counts; an empty one raises UsageError."""
        asked = [_stripped(question) for question in questions]
        encoded = [labelled.encode(self._tokenizer, question, self._file.embedder.size) for question in asked]
        if not asked:
            return []
        states = self._file.embedder.states([one.ids for one in encoded])
        if self._form:
            return [self._tagged(self._form, *each) for each in zip(asked, encoded, states, strict=True)]
        p = _softmax(np.stack([self._file.pool(state) for state in states]), self._heads[0])
        return [Classified(self.labels[i], float(row[i]), row) for i, row in zip(p.argmax(1), p, strict=True)]

    def _tagged(self, form: Form, question: str, encoded: Encoded, states: Floats) -> Classified:
        """The answer field by field. Its probability is the product of those of its fields and tags."""
        *closed, tags = self._heads
        vector = self._file.pool(states)[None]
        fields = [_softmax(vector, head)[0] for head in closed]
        of_tokens = _softmax(states, tags)
        is_word = [begin < end for begin, end in encoded.places]
        tagged = best_tags(np.log(np.maximum(of_tokens, TINY)), question, encoded.places)
        answer = form.answer([int(field.argmax()) for field in fields], tagged, question, encoded.places)
        of_tags = of_tokens[np.arange(len(tagged)), tagged][is_word]
        p = float(np.prod([*(field.max() for field in fields), *of_tags]))
        return Classified(answer, p, np.empty(0, np.float32))

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


def _softmax(x: Floats, head: Head) -> Floats:
    """Probabilities [n, k] for x [n, D]."""
    weights, bias = head
    z = x @ weights.T + bias
    p = np.exp(z - z.max(1, keepdims=True))
    found: Floats = p / p.sum(1, keepdims=True)
    return found


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


def _heads(found: Artifact, labels: Sequence[str], form: Form | None, width: int, source: str) -> list[Head]:
    """The heads, those of closed fields first, as objectives/tag.py orders them."""
    sizes = {"classes": len(labels)} if form is None else {
        **{f"classes.{i}": len(field.values) for i, field in enumerate(form.closed)}, "tags": form.tags}
    heads = []
    for name, size in sizes.items():
        values = found.tensors.get(f"head.{name}")
        if values is None or values.size != size * (width + 1) or not np.isfinite(values).all():
            raise FormatError(f"{source} has no head for {size} {name}", "take an earlier adapter")
        flat = values.reshape(-1)
        heads.append((flat[:size * width].reshape(size, width), flat[size * width:]))
    return heads
