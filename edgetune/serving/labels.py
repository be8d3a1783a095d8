"""A model that answers with one of several labels: the tokens that are compared, and their probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UnsupportedError
from ..llamacpp.tokenizer import Tokenizer


def asked_tokens(tokenizer: Tokenizer, conversation: Sequence[Mapping[str, Any]]) -> list[int]:
    """A conversation to which the model is to answer with a label."""
    messages = [dict(message) for message in conversation]
    return tokenizer.encode(tokenizer.render(messages, add_generation_prompt=True), bos=True)


def label_tokens(tokenizer: Tokenizer, labels: Sequence[str], judge: str) -> list[int]:
    """The last token of each label, which a token of a space may precede. judge: the model's name in errors.

    Raises UnsupportedError for a model whose tokens do not tell the labels apart.
    """
    found = [tokenizer.encode(label)[-1] for label in labels]
    if len(set(found)) != len(labels):
        raise UnsupportedError(f"{judge} has no token for each of {', '.join(labels)}",
                               "judge by rules, or with another model")
    return found


def relative(scores: ArrayLike) -> list[float]:
    """Probabilities of some tokens relative to one another, from their logits or log-probabilities."""
    values = np.asarray(scores, np.float64)
    p = np.exp(values - values.max())
    return [float(value) for value in p / p.sum()]
