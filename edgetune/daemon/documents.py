"""Documents that a daemon answers from: the index of its options, and the vector stores of its clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..retrieval.passages import Passages, open_passages, passages_in
from ..serving.question import Question
from .options import DaemonConfig


class Documents:
    """The documents of a daemon. Close it. Raises the errors of Index."""

    def __init__(self, config: DaemonConfig) -> None:
        self.passages: Passages | None = None  # of the index of the options, around every chat
        if config.index:
            self.passages = open_passages(Path(config.index).expanduser(), config.passages, config.threads)

    def close(self) -> None:
        if self.passages:
            self.passages.close()

    def cited(self, question: Question) -> list[dict[str, Any]] | None:
        """The sources of the passages that stand before a question: none where nothing was found, None where no
        documents are asked.
        """
        asked = passages_in(question.around) or self.passages
        return asked.sources([dict(message) for message in question.messages or ()]) if asked else None
