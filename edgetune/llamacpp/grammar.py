"""llama.cpp's grammar during one answer: which tokens may follow, and which one did.

A token is looked up alone first: in most places the model's choice is what the grammar allows, and to look up one token
takes microseconds where the whole vocabulary takes 16 ms. Else the likeliest ones are looked up, and more of them only
where too few of these may follow. Only allowed tokens are accepted: llama.cpp ends the process at others.
"""

from __future__ import annotations

import codecs
import ctypes
import math
import re
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from . import gbnf
from .closing import Closing
from .library import complaint
from .network import network_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .tokenizer import Tokenizer

HALF_PAIR = re.compile(rb"\xed[\xa0-\xbf]")
SLOWEST = 2.0  # seconds of a core that one look-up may take: an ambiguous grammar takes longer with each character
NEAR = 6.0  # below the highest logit: tokens that are looked up next, where they are few
FEW = 64
MORE = 8  # times as many, where too few of those that were looked up may follow


class Grammar:
    """A grammar in GBNF, and how far an answer of at most `budget` tokens has followed it. Close it. Raises UsageError
    for one that is not valid.

    Control tokens that do not end an answer are never allowed: readers do not see them.
    """

    def __init__(self, llama: ModuleType, tokenizer: Tokenizer, text: str, budget: int | None = None) -> None:
        import numpy as np

        self._llama = llama
        self._tokenizer = tokenizer
        network = network_of(text)
        complaint()
        self._sampler = llama.llama_sampler_init_grammar(tokenizer.vocabulary, text.encode(), b"root")
        if not self._sampler:
            raise UsageError(f"llama.cpp does not take the grammar ({complaint() or 'no reason given'})", gbnf.HINT)
        self._closing = None if budget is None else Closing(network, tokenizer, budget)
        self._table = tokenizer.table
        self._begun = b""  # of a character whose last bytes are still to come
        self._known = np.flatnonzero(self._table.alone >= 0)  # bytes that are a token
        self._tokens = np.zeros(tokenizer.n_vocab, np.dtype(llama.llama_token_data))
        self._one = llama.llama_token_data()
        self._choice_of_one = llama.llama_token_data_array(data=ctypes.pointer(self._one), size=1, selected=-1,
                                                           sorted=False)

    def allowed(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Which of these tokens may follow, bool [n]."""
        import numpy as np

        tokens = self._tokens[: len(ids)]
        tokens["id"] = ids
        tokens["logit"] = 0.0
        data = ctypes.cast(tokens.ctypes.data, ctypes.POINTER(self._llama.llama_token_data))
        choice = self._llama.llama_token_data_array(data=data, size=len(tokens), selected=-1, sorted=False)
        self._apply(choice)
        found: NDArray[np.bool_] = np.isfinite(tokens["logit"])
        found &= ~self._table.hidden[ids]
        unsure = found if self._begun else found & self._table.partial[ids]
        for place in np.flatnonzero(unsure):
            found[place] = self._makes_characters(int(ids[place]))
        return found

    def _makes_characters(self, token: int) -> bool:
        """Whether it continues the bytes so far as UTF-8: llama.cpp takes longer codes for characters too."""
        if self._tokenizer.is_end(token):
            return not self._begun
        data = self._begun + self._tokenizer.piece(token)
        try:
            codecs.getincrementaldecoder("utf-8")().decode(data)
        except UnicodeDecodeError:
            return False
        return not HALF_PAIR.search(data)  # which the decoder refuses with its last byte only

    def allows(self, token: int) -> bool:
        """Whether one token is allowed: without arrays it takes a tenth of the time."""
        if self._table.hidden[token]:
            return False
        self._one.id = token
        self._one.logit = 0.0
        self._apply(self._choice_of_one)
        if self._one.logit != 0.0:
            return False
        return self._makes_characters(token) if self._begun or self._table.partial[token] else True

    def _apply(self, choice: Any) -> None:
        """Let llama.cpp set the logits of those that may not follow to minus infinity."""
        start = time.thread_time()
        self._llama.llama_sampler_apply(self._sampler, ctypes.byref(choice))
        self._check_time(start)

    def likeliest(self, logits: NDArray[np.float32], count: int, within: float = math.inf) -> NDArray[np.intp]:
        """The `count` likeliest of the tokens that may follow (0: all of them), or as many as there are, descending.

        within: those whose logit is lower than the highest one of them by more are left out.
        """
        import numpy as np

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
            low = max(lowest, _nth(of_them, size))
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
        """All tokens but those that begin with a byte that cannot follow."""
        import numpy as np

        possible = np.ones(257, np.bool_)  # by byte; 256: none
        possible[self._known] = self.allowed(self._table.alone[self._known])
        return np.flatnonzero(possible[self._table.firsts])

    @property
    def whole(self) -> bool:
        """Whether an answer with a budget is known to be whole."""
        return self._closing is not None and self._closing.whole

    def accept(self, token: int) -> int:
        """Follow it with a token that `allows` allowed, or one that ends the answer in time; returns it."""
        if self._closing is not None:
            chosen = self._closing.token(token)
            if chosen != token and not self.allows(chosen):  # llama.cpp would end the process
                self._closing = None
            else:
                token = chosen
        start = time.thread_time()
        self._llama.llama_sampler_accept(self._sampler, token)
        self._check_time(start)
        if self._begun or self._table.partial[token]:
            decoder = codecs.getincrementaldecoder("utf-8")()
            decoder.decode(self._begun + self._tokenizer.piece(token))
            self._begun = decoder.getstate()[0]
        return token

    @staticmethod
    def _check_time(start: float) -> None:
        if time.thread_time() - start > SLOWEST:
            raise UsageError("the grammar can be followed in too many ways at once",
                             "let its alternatives and repetitions begin with different characters")

    def close(self) -> None:
        self._llama.llama_sampler_free(self._sampler)


def _nth(logits: NDArray[np.float32], n: int) -> float:
    """The nth highest; minus infinity where there are no more than n."""
    import numpy as np

    place = len(logits) - n
    return float(np.partition(logits, place)[place]) if place > 0 else -math.inf


def _descending(ids: NDArray[np.intp], logits: NDArray[np.float32]) -> NDArray[np.intp]:
    """Sorts by logit; of equal ones the first token first, as argmax has it."""
    import numpy as np

    return ids[np.lexsort((ids, -logits[ids]))]
