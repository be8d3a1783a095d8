"""A model that writes text turns a sentence into lines of calls. It learned the house, so that it reads no prompt."""

from __future__ import annotations

import math
from typing import Any

from ...serving.answering import Answering
from .answering import Understood, possible
from .entities import Home
from .language import Language
from .lines import grammar, wishes_of
from .wishes import UNFINISHED, Wish

MOST_TOKENS = 160  # of an answer


class ByDecoder:
    """A model with the adapter of a house, named `adapter`, in `answering`, which has started. limit: the least
    probability of a sure answer.
    """

    def __init__(self, answering: Answering[Any], adapter: str, home: Home, language: Language, limit: float) -> None:
        self._answering = answering
        self._adapter = adapter
        self._home = home
        self._language = language
        self._grammar = grammar(home)
        self._limit = limit

    @property
    def busy_bytes(self) -> int:
        return 0  # whoever opened the model counts its own

    def understand(self, sentence: str) -> Understood:
        """Raises the errors of Answering.submit."""
        wishes, probability = self.written(sentence)
        return Understood(wishes, probability >= self._limit)

    def written(self, sentence: str) -> tuple[tuple[Wish, ...], float]:
        """The wishes of a sentence, and the probability of the text that says them."""
        found = self._answering.submit(self._prompt(self._language.in_digits(sentence)), adapter=self._adapter,
                                       max_tokens=MOST_TOKENS, temperature=0.0, logprobs=0, grammar=self._grammar)
        text = found.text()
        try:
            wishes = wishes_of(text, self._home)
        except ValueError:  # its tokens were not enough
            return (Wish(why=UNFINISHED),), 0.0
        probability = math.exp(sum(token.logprob or 0.0 for token in found.logprobs))
        return tuple(possible(wish, self._home) for wish in wishes), probability

    def _prompt(self, sentence: str) -> str:
        """The sentence as rows of a prompt and a completion are learned: in the chat template, where there is one."""
        served = self._answering.served
        if not served.chat_template:
            return sentence
        return served.render([{"role": "user", "content": sentence}], None, self._adapter)
