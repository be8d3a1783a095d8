"""An encoder with trained heads answers with labels or JSON, by edgetune's own engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import UsageError
from ..formats.bundle import open_bundle
from ..formats.gguf import Gguf
from ..machine import device
from ..objectives.labelling import Classified as Classified
from ..objectives.labelling import Floats
from .encoder import Encoder, Reader

GROWTH = 2 << 20  # bytes of Python and of threads while questions are answered


class Classifier:
    """An encoder and an adapter that `edgetune train` made of it; close it, or use it as a context manager. For one
    thread at a time.

    >>> with edgetune.Classifier("minilm", "my-labels") as served:
    ...     served.classify(["turn on the light"])[0].label

    model: a GGUF, a bundle or a model's name. adapter: a folder, or its adapter.gguf. threads: 0 for one a physical
    core. precision: of the products, as in training. labels: those that it knows; () where answers have several fields.
    sureness: which answers are sure; None if training had too few rows to know. Raises FormatError for an adapter
    without labels, MismatchError for one of another base, and the errors of open_bundle and open_network.
    """

    def __init__(self, model: str | Path | Gguf, adapter: str | Path, threads: int = 0,
                 precision: str = "fast") -> None:
        encoder = Encoder(model if isinstance(model, Gguf) else open_bundle(model).gguf, threads, precision)
        self._opened: Reader | None = encoder.adapter(adapter)
        self.labels = self._opened.learned.labels
        self.learned = self._opened.learned
        self.known = self._opened.known
        self.sureness = self.known.sureness

    def close(self) -> None:
        """Frees weights, adapter and memory; the Classifier cannot be used afterwards."""
        self._opened = None  # which nothing else refers to

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def classify(self, questions: Sequence[str]) -> list[Classified]:
        """The answer to each question. Of one that is too long the beginning counts. Raises UsageError for an empty
        one, and after `close`.
        """
        reader = self._reader
        return reader.classify([reader.encoder.read(question) for question in questions])

    def graded(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[Classified, Floats | None]]:
        """The answer to the question of each (question, right answer), and -log p of each label of the right one; None
        where something of it was never learned.
        """
        reader = self._reader
        return reader.graded([reader.encoder.read(question) for question, _ in pairs], [answer for _, answer in pairs])

    def keep_within(self, budget: int, longest: int) -> None:
        """Lets this process take `budget` bytes at most while it answers questions of at most `longest` tokens: fewer
        are computed together then. Raises BudgetError where not even one fits.
        """
        reader = self._reader
        reader.keep_within(budget - device.rss() - reader.encoder.gguf.data.nbytes - GROWTH, longest)

    @property
    def _reader(self) -> Reader:
        if self._opened is None:
            raise UsageError("this Classifier is closed", "open another")
        return self._opened

    # ---- as a model that writes text ----------------------------------------------------------------------------

    def chat(self, messages: Sequence[dict[str, Any]], **_options: Any) -> Iterator[str]:
        """Yields the answer to the user's last message. The options of a model that writes text have no effect."""
        yield self.classify([asked(messages)])[0].label

    def generate(self, prompt: str, **_options: Any) -> Iterator[str]:
        """Yields the answer to a prompt."""
        yield self.classify([prompt])[0].label


def asked(messages: Sequence[Any]) -> str:
    """The text of the user's last message, which an encoder reads. Raises UsageError without one."""
    found = [message for message in messages if message.get("role") == "user"]
    if not found:
        raise UsageError("no message is the user's", "ask something")
    content = found[-1].get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    if any(part.get("type") != "text" for part in parts):
        raise UsageError("the user's message is not text alone", "send text: an encoder reads nothing else")
    return "".join(part["text"] for part in parts)
