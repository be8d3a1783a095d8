"""Models that think before they answer: their marks, and a budget for the tokens between them.

Such a model's chat template names <think> and </think>, which are tokens of its vocabulary. A budget works as
llama.cpp's reasoning budget does: when its tokens are spent, the token that ends thinking is forced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

BEGIN = "<think>"
END = "</think>"
SWITCH = "enable_thinking"  # the variable by which a template leaves thinking out
ANY = -1  # a budget without a limit
NEAR = 4  # tokens at the end of a prompt among which the first mark may be


@dataclass(frozen=True)
class Thinking:
    """The marks of a model, as token ids. has_switch: whether its template can leave thinking out."""

    begin: int
    end: int
    has_switch: bool

    def opened_by(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends within thinking, as some templates write it."""
        last = [*prompt[-NEAR:]]
        return self.begin in last and self.end not in last[last.index(self.begin) :]


def thinking_of(tokenizer: Tokenizer) -> Thinking | None:
    """The marks of a model that thinks; None for another one."""
    template = tokenizer.chat_template or ""
    if END not in template:
        return None
    begin, end = (tokenizer.encode(mark, continues=True) for mark in (BEGIN, END))
    if len(begin) != 1 or len(end) != 1:
        return None
    return Thinking(begin[0], end[0], SWITCH in template)


class ThinkingBudget:
    """Follows the tokens of an answer. budget: tokens of thinking, ANY: as many as the model likes. inside: whether the
    prompt has begun it. count: tokens of thinking so far.
    """

    def __init__(self, marks: Thinking, budget: int, inside: bool) -> None:
        self.inside = inside
        self.count = 0
        self._marks = marks
        self._budget = budget
        self._is_first = True

    @property
    def forced(self) -> int | None:
        """The token that must come next; None where the model decides."""
        is_spent = self._budget != ANY and self.count >= self._budget
        return self._marks.end if self.inside and is_spent else None

    def is_free(self, token: int) -> bool:
        """Whether a grammar of the answer has no say in this next token."""
        return self.inside or (self._is_first and token == self._marks.begin)

    def take(self, token: int) -> None:
        """Notes a token."""
        if self.inside:
            self.inside = token != self._marks.end
            self.count += self.inside
        elif self._is_first:
            self.inside = token == self._marks.begin
        self._is_first = False
