"""The model of score_model graders, by llama.cpp: log-probabilities of the token after a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import EdgetuneError, UnsupportedError

if TYPE_CHECKING:
    from ...serving.llama import LlamaModel


@dataclass(frozen=True)
class LlamaJudge:
    """A ScoreModel over an opened model, which whoever opened it closes; it judges with the adapter in use there."""

    served: LlamaModel
    name: str

    def label_probabilities(self, conversations: Sequence[Sequence[Mapping[str, Any]]],
                            labels: Sequence[str]) -> list[list[float] | None]:
        """Raises UnsupportedError for a model whose tokens do not tell the labels apart."""
        tokens = self._tokens(labels)
        return [self._probabilities(conversation, tokens) for conversation in conversations]

    def _tokens(self, labels: Sequence[str]) -> list[int]:
        """The last token of each label, which before it may have one of a space."""
        found = [self.served.tokenizer.encode(label)[-1] for label in labels]
        if len(set(found)) != len(labels):
            raise UnsupportedError(f"{self.name} has no token for each of {', '.join(labels)}",
                                   "judge with another model")
        return found

    def _probabilities(self, conversation: Sequence[Mapping[str, Any]], labels: list[int]) -> list[float] | None:
        tokenizer = self.served.tokenizer
        messages = [dict(message) for message in conversation]
        prompt = tokenizer.encode(tokenizer.render(messages, add_generation_prompt=True), bos=True)
        if len(prompt) >= self.served.context:
            return None
        wanted = np.zeros(len(prompt), np.bool_)
        wanted[-1] = True
        logits = [row.astype(np.float64) for _, rows in self.served.cache.feed(prompt, wanted) for row in rows]
        if not logits:
            raise EdgetuneError("llama.cpp gave no logits", "report it")
        chosen = logits[-1][labels]
        p = np.exp(chosen - chosen.max())
        return [float(value) for value in p / p.sum()]
