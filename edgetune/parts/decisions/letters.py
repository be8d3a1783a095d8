"""Typed questions to a served model that writes text: each is asked by letters in both orders of its options.

An adapter that did not learn a question answers all the same, and is not tuned for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from ...adapters.store import read_description
from ...daemon.service import Service
from ...data.decisions import TypedQuestion
from ...data.letters import LETTERS, Asked, asked
from ...llamacpp.tokenizer import Tokenizer
from ...serving.completion import Completion
from ...serving.labels import label_tokens
from ...serving.lettered import UNTUNED, Lettered, both_orders, lettered_in
from ...serving.question import Message, Question
from .decided import SURE, Decided


@dataclass(frozen=True)
class LetterAsker:
    """Asks the base with an adapter. learned: what this adapter learned of such questions. name: of the model."""

    tokenizer: Tokenizer
    name: str
    thinks: bool
    learned: Lettered = UNTUNED

    @classmethod
    def of(cls, service: Service, adapter: str) -> LetterAsker:
        """adapter: its id; "": the base answers alone. Raises FormatError for one that is damaged."""
        tokenizer = service.served.tokenizer
        assert isinstance(tokenizer, Tokenizer)
        learned = _learned(service.adapters.path(adapter)) if adapter else UNTUNED
        return cls(tokenizer, service.name, service.served.thinks, learned)

    def messages(self, state: str, question: TypedQuestion) -> list[Message]:
        """The conversation by which corrections are kept and learned. Raises UsageError for too many options."""
        return _messages(asked(state, question))

    def questions(self, state: str, question: TypedQuestion, model: str) -> tuple[Question, Question]:
        """The question in both orders. The first may be kept, by which the gate knows what people ask."""
        whole = asked(state, question)
        options = {"among": label_tokens(self.tokenizer, LETTERS[:len(question.labels)], self.name), "max_tokens": 1}
        ask = partial(Question, model=model, options=options, thinking=0 if self.thinks else None)
        return (ask(_messages(whole)), ask(_messages(whole.backwards), may_be_kept=False))

    def knows(self, question: TypedQuestion) -> bool:
        """Whether the adapter learned a question."""
        return question.instructions in self.learned.questions

    def decided(self, question: TypedQuestion, completions: Sequence[Completion]) -> Decided:
        """The answer by both orders."""
        forwards, backwards = (each.among for each in completions)
        p = both_orders(forwards, backwards)
        if not self.knows(question):
            return Decided(question, p, is_untuned=True)
        p = self.learned.tempered(p)
        return Decided(question, p, self.learned.is_sure(p, SURE))


def _messages(question: Asked) -> list[Message]:
    return [{"role": "user", "content": question.text}]


@lru_cache(maxsize=4)
def _learned(path: Path) -> Lettered:
    return lettered_in(read_description(path), str(path))
