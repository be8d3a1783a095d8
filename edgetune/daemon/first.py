"""An encoder that answers before the model: what it is sure of. The model, which takes longer, answers the rest.

It reads one question. So it answers conversations of one message of a user, which ask for no tools and for no form of
the answer, and which have no system message but that of its rows or of the active adapter. What feedback says of a
question counts more than what it learned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..adapters import store
from ..errors import NotFoundError, UsageError
from ..formats.bundle import open_bundle
from ..formats.named import stored_models
from ..objectives.labelling import Classified
from ..serving.completion import Completion
from ..serving.encoder import Encoder
from ..serving.encoder_model import AT_ONCE
from ..serving.learned import learned
from ..serving.served import Served
from ..serving.sureness import LEAST_ROWS
from .options import DaemonConfig
from .sources import AskedQuestion, whole_answer
from .state.adapters import Adapters

FORMS = ("grammar", "echo", "among")  # options that ask for another answer than a text
Content = Mapping[str, Any]


class FirstEncoder:
    """The encoder of --first with its adapter. threshold: the least probability of its answers. busy_bytes: of its
    activations. Raises the errors of encoder_of and Encoder, and UsageError where no answer is sure.
    """

    def __init__(self, config: DaemonConfig) -> None:
        path = Path(config.first).expanduser()
        self._encoder = Encoder(open_bundle(encoder_of(path)).gguf, config.threads, at_once=AT_ONCE)
        self._reader = self._encoder.adapter(path)
        self.system = store.read_system(path)
        self.busy_bytes = self._reader.busy_bytes
        self._turn = threading.Lock()
        if (sureness := self._reader.sureness) is None:
            raise UsageError(f"{config.first} does not say when it is sure: it is of an earlier edgetune, or had fewer "
                             f"than {LEAST_ROWS} rows for that, or gives several labels", "train it again with one "
                             f"label or JSON a row and {LEAST_ROWS} held-out rows, or the head alone on labels: "
                             "--steps 1 --eval none")
        self.threshold = sureness.threshold(config.first_share)
        if sureness.surest < config.first_share:
            raise UsageError(f"first-share is {config.first_share:g}, and of the surest answers of {config.first} "
                             f"{sureness.surest:.1%} are right", "give less, or train it on more rows")

    def answer(self, question: str) -> Classified | None:
        """Returns the answer to a question if it is sure. For any thread."""
        read = self._encoder.read(question)
        with self._turn:
            found = self._reader.classify([read])[0]
        return found if found.probability >= self.threshold else None


class First:
    """The sure answers of an encoder as a source. models: names that it answers for. is_disputed: whether feedback says
    that an answer to a question is wrong.
    """

    name: ClassVar[str] = "encoder"

    def __init__(self, encoder: FirstEncoder, served: Served, adapters: Adapters, models: Collection[str],
                 is_disputed: Callable[[Content, str], bool]) -> None:
        self._encoder = encoder
        self._served = served
        self._adapters = adapters
        self._models = models
        self._is_disputed = is_disputed

    def answer(self, asked: AskedQuestion) -> Completion | None:
        """Returns the answer to a question of which it is sure. Raises the errors of Batcher.submit."""
        has_form = asked.options.get("logprobs") is not None or any(asked.options.get(name) for name in FORMS)
        if asked.is_free or has_form or asked.model not in self._models:
            return None
        question = self._question(asked.content)
        if not question or (found := self._encoder.answer(question)) is None:
            return None
        if self._is_disputed(asked.content, found.label):
            return None
        return whole_answer(found.label, asked, self._served, self._adapters.serving,
                            {"probability": found.probability})

    def _question(self, content: Content) -> str:
        """The text that the user asks; "" for what is not one plain question."""
        *before, last = content.get("messages") or [{}]
        is_plain = last.get("role") == "user" and isinstance(last.get("content"), str) and not content.get("tools")
        systems = (self._encoder.system, self._served.system_of(self._adapters.serving))
        is_alone = not before or (len(before) == 1 and before[0].get("role") == "system"
                                  and before[0].get("content") in systems)
        return str(last["content"]).strip() if is_plain and is_alone else ""


def encoder_of(adapter: Path) -> Path:
    """The file of the encoder that an adapter was trained on: where it was then, or among pulled models. Raises
    FormatError for an adapter without labels, and NotFoundError.
    """
    file, found = store.read_any(adapter)
    learned(found, str(adapter))
    name = store.base_of(file)[0]
    recorded = Path(store.read_run(file.path.parent).get("base", {}).get("path") or name)
    for path in (recorded, *(path for _, path in stored_models() if path.name == name)):
        if path.exists():
            return path
    raise NotFoundError(f"{adapter} was trained on {recorded}, which does not exist",
                        "put the encoder there, or get it with edgetune pull")
