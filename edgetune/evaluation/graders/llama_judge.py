"""The model of score_model graders, by llama.cpp: log-probabilities of the token after a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import EdgetuneError
from ...serving.labels import asked_tokens, label_tokens, relative

if TYPE_CHECKING:
    from ...serving.llama import LlamaModel


@dataclass(frozen=True)
class LlamaJudge:
    """A ScoreModel over an open model, which its opener closes. It scores answers with the adapter in use there."""

    served: LlamaModel
    name: str

    def label_probabilities(self, conversations: Sequence[Sequence[Mapping[str, Any]]],
                            labels: Sequence[str]) -> list[list[float] | None]:
        """Raises UnsupportedError for a model whose tokens do not tell the labels apart."""
        tokens = label_tokens(self.served.tokenizer, labels, self.name)
        return [self._probabilities(conversation, tokens) for conversation in conversations]

    def _probabilities(self, conversation: Sequence[Mapping[str, Any]], labels: list[int]) -> list[float] | None:
        prompt = asked_tokens(self.served.tokenizer, conversation)
        if len(prompt) >= self.served.context:
            return None
        wanted = np.zeros(len(prompt), np.bool_)
        wanted[-1] = True
        logits = [row for _, rows in self.served.cache.feed(prompt, wanted, repeats=True) for row in rows]
        if not logits:
            raise EdgetuneError("llama.cpp gave no logits", "report it")
        return relative(logits[-1][labels])
