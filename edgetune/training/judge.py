"""The base model as a judge of answers, by the engine that trains and in its memory: with the adapter switched off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.packing import Example
from ..data.trees import micro_batches
from ..models.base import Passes
from ..models.linear import RunShape
from ..serving.labels import asked_tokens, label_tokens, relative
from .passes import scores

if TYPE_CHECKING:
    from ..llamacpp.tokenizer import Tokenizer


class EngineJudge:
    """A ScoreModel, as graders have it. run: of the decoder, whose longest document a conversation must fit into."""

    name = "self"

    def __init__(self, decoder: Passes, run: RunShape, tokenizer: Tokenizer) -> None:
        self.decoder = decoder
        self.run = run
        self.tokenizer = tokenizer

    def label_probabilities(self, conversations: Sequence[Sequence[Mapping[str, Any]]],
                            labels: Sequence[str]) -> list[list[float] | None]:
        """The probability of each label relative to the others, for each conversation; None if it does not fit.

        Raises UnsupportedError for a model whose tokens do not tell the labels apart.
        """
        tokens = label_tokens(self.tokenizer, labels, "this model")
        prompts = [asked_tokens(self.tokenizer, conversation) for conversation in conversations]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < self.run.max_length]
        examples = [_example(prompts[i], token, group) for group, i in enumerate(fitting, 1) for token in tokens]
        with self.decoder.linear.off():
            logps = scores(self.decoder, micro_batches(examples, self.run.max_tokens, prefix=self.run.prefix))
        found: list[list[float] | None] = [None] * len(prompts)
        for place, i in enumerate(fitting):
            of_conversation = examples[place * len(tokens):(place + 1) * len(tokens)]
            found[i] = relative([logps[id(one)][0] for one in of_conversation])
        return found


def _example(prompt: Sequence[int], label: int, group: int) -> Example:
    """A conversation with a label after it; those of one conversation are a group, which computes it once."""
    weights = np.zeros(len(prompt) + 1, np.float32)
    weights[-1] = 1
    return Example(np.array([*prompt, label], np.int32), weights, group)
