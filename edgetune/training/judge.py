"""The base model as a judge of answers, by the engine that trains and in its memory: with the adapter switched off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.packing import Example
from ..data.trees import Tree, micro_batches
from ..errors import UnsupportedError
from ..models.base import Passes
from ..models.linear import RunShape
from .passes import score

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
        """Of each conversation, the probability of each label relative to the others; None where it does not fit.

        Raises UnsupportedError for a model whose tokens do not tell the labels apart.
        """
        tokens = [self.tokenizer.encode(label)[-1] for label in labels]  # before it there may be one of a space
        if len(set(tokens)) != len(labels):
            raise UnsupportedError(f"this model has no token for each of {', '.join(labels)}", "judge by rules")
        prompts = [self._prompt(conversation) for conversation in conversations]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < self.run.max_length]
        examples = [_example(prompts[i], token, group) for group, i in enumerate(fitting, 1) for token in tokens]
        logps = self._scores(examples)
        found: list[list[float] | None] = [None] * len(prompts)
        for place, i in enumerate(fitting):
            of_labels = np.array([logps[id(one)] for one in examples[place * len(tokens):(place + 1) * len(tokens)]])
            p = np.exp(of_labels - of_labels.max())
            found[i] = [float(value) for value in p / p.sum()]
        return found

    def _prompt(self, conversation: Sequence[Mapping[str, Any]]) -> list[int]:
        messages = [dict(message) for message in conversation]
        return self.tokenizer.encode(self.tokenizer.render(messages, add_generation_prompt=True), bos=True)

    def _scores(self, examples: Sequence[Example]) -> dict[int, float]:
        """log p of the last token of each, by its identity."""
        found: dict[int, float] = {}
        with self.decoder.linear.off():
            for micro in micro_batches(examples, self.run.max_tokens, prefix=self.run.prefix):
                logp = score(self.decoder, micro)
                whole = micro.whole if isinstance(micro, Tree) else micro
                found |= {id(example): float(logp[part][0]) for example, part in whole.parts()}
        return found


def _example(prompt: Sequence[int], label: int, group: int) -> Example:
    """A conversation with a label after it; those of one conversation are a group, which computes it once."""
    weights = np.zeros(len(prompt) + 1, np.float32)
    weights[-1] = 1
    return Example(np.array([*prompt, label], np.int32), weights, group)
