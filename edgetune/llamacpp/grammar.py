"""A grammar during one answer: which tokens may follow, which one did, and how the answer ends within its tokens.

A token is looked up alone first: in most places the model's choice is what the grammar allows, and to look up one token
takes microseconds. Else the likeliest ones are looked up, and more of them only if too few of these may follow.

Neither llama.cpp's grammars nor llguidance end an answer within its tokens, which takes the states that say which
tokens may follow. (llguidance took 60 MiB for 262,144 tokens, and refused lists of different items.)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .states import FormStates, network_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .states import GrammarState
    from .tokenizer import Tokenizer

NEAR = 6.0  # below the highest logit: tokens that are looked up next, if they are few
FEW = 64
MORE = 8  # times as many, if too few of those that were looked up may follow


class Grammar:
    """A grammar in GBNF, and how far an answer of at most `budget` tokens has followed it. Raises UsageError for one
    that is not valid, and when it can be followed in too many ways.

    `accept` replaces tokens after which the shortest ending would no longer fit into the budget. If the shortest answer
    has more tokens than the budget, it lets all tokens through, and the answer may be cut. Control tokens that do not
    end an answer are never allowed: readers do not see them.
    """

    def __init__(self, tokenizer: Tokenizer, text: str, budget: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._table = tokenizer.table
        self._states = FormStates(network_of(text))
        self._state = self._states.start()
        self._begun = b""  # of a character whose last bytes are still to come
        self._left = math.inf if budget is None else budget
        self._plan: list[int] | None = None  # tokens of an ending that fits; None: of the shortest in bytes, any does
        self._closes = self._fits(self._state, b"")
        ends = (tokenizer.eot, tokenizer.eos)
        self._end = next((end for end in ends if end is not None and tokenizer.is_end(end)), None)

    # ---- tokens that may follow ---------------------------------------------------------------------------------

    def allows(self, token: int) -> bool:
        """Whether this token may follow."""
        if self._tokenizer.is_end(token):
            return self.whole
        return not self._table.hidden[token] and self._after(self._tokenizer.piece(token)) is not None

    def allowed(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Which of these tokens may follow, bool [n]."""
        return np.fromiter(map(self.allows, ids.tolist()), np.bool_, len(ids))

    def likeliest(self, logits: NDArray[np.float32], count: int, within: float = math.inf) -> NDArray[np.intp]:
        """The `count` likeliest of the tokens that may follow (0: all of them), or as many as there are, descending.

        within: those whose logit is lower than the highest one of them by more are left out.
        """
        near = np.flatnonzero(logits > logits.max() - NEAR)
        if count <= len(near) <= FEW and count > 0:
            found = near[self.allowed(near)]
            if len(found) >= count:
                return _descending(found, logits)[:count]
        ids = self._candidates()
        of_them = logits[ids]
        size = max(2 * count, FEW) if count or within < math.inf else len(ids)
        found = ids[:0]
        looked_up = np.inf  # those whose logit is this, or higher
        lowest = -np.inf
        while True:
            place = len(of_them) - size
            low = max(lowest, float(np.partition(of_them, place)[place]) if place > 0 else -math.inf)
            part = ids[(of_them >= low) & (of_them < looked_up)]
            found = np.concatenate([found, part[self.allowed(part)]])
            looked_up = low
            lowest = logits[found].max(initial=-np.inf) - within
            if size >= len(ids) or 0 < count <= len(found) or low <= lowest:
                break
            size *= MORE
        if not len(found):
            raise UsageError("no token of the model can continue what the grammar asks for", "choose another grammar")
        found = _descending(found[logits[found] >= lowest], logits)
        return found[:count] if count else found

    def _candidates(self) -> NDArray[np.intp]:
        """All tokens but those that begin with two bytes that cannot follow."""
        possible = [bool(self._after(begin)) if begin else self.whole for begin in self._table.begins]
        return np.flatnonzero(np.array(possible)[self._table.begin_of])

    def _after(self, piece: bytes) -> tuple[GrammarState, bytes] | None:
        """(state, begun) after the bytes of a token; None if they cannot follow."""
        return self._states.follow(self._state, self._begun, piece) if piece else None

    # ---- the answer ---------------------------------------------------------------------------------------------

    @property
    def whole(self) -> bool:
        """Whether the answer may end here."""
        return self._state.may_end and not self._begun

    def accept(self, token: int) -> int:
        """Follow it with a token that `allows` allowed, or one that ends the answer in time; returns it."""
        if self._tokenizer.is_end(token):
            return token
        self._left -= 1
        after = self._after(self._tokenizer.piece(token))
        if self._closes and after and not self._fits(*after):
            plan = self._ending(self._state, self._begun) if self._plan is None else self._plan
            if not plan and self.whole and self._end is not None:
                return self._end
            self._closes = bool(plan)
            if plan:
                token, *self._plan = plan
                after = self._after(self._tokenizer.piece(token))
        assert after
        self._state, self._begun = after
        return token

    def _fits(self, state: GrammarState, begun: bytes) -> bool:
        """Whether an ending from here has at most `left` tokens; it becomes the plan. No token has less than a byte."""
        if not begun and state.need <= self._left:
            self._plan = None
            return True
        ending = self._ending(state, begun)
        fits = 0 < len(ending) <= self._left
        if fits:
            self._plan = ending
        return fits

    def _ending(self, state: GrammarState, begun: bytes) -> list[int]:
        """The tokens of the shortest ending in bytes; [] where there is none, or where it is empty."""
        first = self._states.completed(state, begun) if begun else ""
        if first is None:
            return []
        if first:
            state = self._states.move(state, first)
        if state.need == math.inf:
            return []
        rest_of_character = first.encode()[len(begun) :]
        text = self._states.shortest(state)
        tokens = self._tokenizer.encode(text, special=False, continues=True)
        if b"".join(map(self._tokenizer.piece, tokens)) != text.encode():  # a vocabulary that normalizes
            tokens = self._bytes(text.encode())
        tokens = self._bytes(rest_of_character) + tokens
        return [] if -1 in tokens else tokens

    def _bytes(self, data: bytes) -> list[int]:
        """The tokens of single bytes, -1 for those that the vocabulary lacks."""
        return [int(self._table.alone[byte]) for byte in data]


def _descending(ids: NDArray[np.intp], logits: NDArray[np.float32]) -> NDArray[np.intp]:
    """Sorts by logit; of equal ones the first token first, as argmax has it."""
    return ids[np.lexsort((ids, -logits[ids]))]
