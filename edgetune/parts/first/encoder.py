"""An encoder that answers before the model: what it is sure of. The model, which takes longer, answers the rest.

It reads one question. So it answers conversations of one message of a user, which ask for no tools and for no form of
the answer, and which have no system message but that of its rows or of the active adapter. What feedback says of a
question counts more than what it learned.

A question that is unlike the learned ones is the model's, and one whose kind is not sure: its label, or of JSON the
fields of few values. Where the kind is sure and other values are not, the better one answers, see running.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...adapters import store
from ...daemon.sources import CERTAIN, FORMS, AskedQuestion, whole_answer
from ...daemon.state.adapters import Adapters
from ...errors import UsageError
from ...formats.bundle import Bundle, open_bundle
from ...serving.completion import Completion
from ...serving.encoder import Encoder, encoder_of
from ...serving.encoder_model import AT_ONCE
from ...serving.served import Served
from ...serving.sureness import LEAST_ROWS

Content = Mapping[str, Any]


@dataclass(frozen=True)
class FirstAnswer:
    """The answer to a question of a sure kind. is_sure: whether it is sure as a whole."""

    text: str
    probability: float
    is_sure: bool


class FirstEncoder:
    """The encoder of an adapter. path: of the adapter. share: of its sure answers that is right at least. threshold:
    the least probability of its sure answers; of_kinds: that of their kinds. has_kinds: whether these are known by
    themselves. busy_bytes: of its activations. Raises the errors of encoder_of and Encoder, and UsageError where no
    answer is sure.
    """

    def __init__(self, adapter: str, share: float, threads: int) -> None:
        self.path = Path(adapter).expanduser()
        self.bundle: Bundle = open_bundle(encoder_of(self.path))
        self._encoder = Encoder(self.bundle.gguf, threads, at_once=AT_ONCE)
        self._reader = self._encoder.adapter(self.path)
        self.system = store.read_system(self.path)
        self.busy_bytes = self._reader.busy_bytes
        self._turn = threading.Lock()
        known = self._reader.known
        if known.sureness is None:
            raise UsageError(f"{adapter} does not say when it is sure: it is of an earlier edgetune, or had fewer "
                             f"than {LEAST_ROWS} rows for that, or gives several labels", "train it again with one "
                             f"label or JSON a row and {LEAST_ROWS} held-out rows, or the head alone on labels: "
                             "--steps 1 --eval none")
        kinds = known.kinds or known.sureness
        self.threshold = known.sureness.threshold(share)
        self.of_kinds = kinds.threshold(share)
        if kinds.surest < share:
            less = f"give a first-share of at most {kinds.surest:g}, or " if kinds.levels else ""
            raise UsageError(f"no answer of {adapter} is sure: {kinds.missing(share)}",
                             f"{less}train it on more rows")
        self.has_kinds = known.kinds is not None

    def answer(self, question: str) -> FirstAnswer | None:
        """Returns the answer to a question that is like the learned ones and of a sure kind. For any thread."""
        read = self._encoder.read(question)
        with self._turn:
            found = self._reader.classify([read])[0]
            kind = found.kind if self.has_kinds else found.probability
            if kind < self.of_kinds or not self._reader.is_like(read):
                return None
        return FirstAnswer(found.label, found.probability, found.probability >= self.threshold)


class First:
    """The answers of an encoder as a source. models: names that it answers for. is_disputed: whether feedback says that
    an answer to a question is wrong. is_better: whether the model is better on questions of a sure kind whose answers
    are not sure.
    """

    name: ClassVar[str] = "encoder"
    place: ClassVar[int] = CERTAIN + 1

    def __init__(self, encoder: FirstEncoder, served: Served, adapters: Adapters, models: Collection[str],
                 is_disputed: Callable[[Content, str], bool], is_better: Callable[[], bool]) -> None:
        self._encoder = encoder
        self._served = served
        self._adapters = adapters
        self._models = models
        self._is_disputed = is_disputed
        self._is_better = is_better

    def answer(self, asked: AskedQuestion) -> Completion | None:
        """Returns the answer to a question of which it is sure. Raises the errors of Batcher.submit."""
        has_form = asked.options.get("logprobs") is not None or any(asked.options.get(name) for name in FORMS)
        if asked.is_free or has_form or asked.model not in self._models:
            return None
        question = self._question(asked.content)
        if not question or (found := self._encoder.answer(question)) is None:
            return None
        if (not found.is_sure and self._is_better()) or self._is_disputed(asked.content, found.text):
            return None
        return whole_answer(found.text, asked, self._served, self._adapters.serving, {"probability": found.probability})

    def _question(self, content: Content) -> str:
        """The text that the user asks; "" for what is not one plain question."""
        *before, last = content.get("messages") or [{}]
        is_plain = last.get("role") == "user" and isinstance(last.get("content"), str) and not content.get("tools")
        systems = (self._encoder.system, self._served.system_of(self._adapters.serving))
        is_alone = not before or (len(before) == 1 and before[0].get("role") == "system"
                                  and before[0].get("content") in systems)
        return str(last["content"]).strip() if is_plain and is_alone else ""
