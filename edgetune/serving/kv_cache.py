"""The cells of a llama.cpp context and their holders: sequences in progress, and finished ones kept for reuse.

Keys and values depend on the adapter, so only sequences of one adapter share a beginning. A shared beginning is held
once; a cell is free when nobody holds it any more. An adapter may have a prefix, with which its sequences begin
(llamacpp/kv_state.py).

llama.cpp rounds a product differently if another number of tokens is computed at once, and attention if cells are in
another order. So an answer that must repeat shares only tokens that were computed alone in pieces of CUT, counted from
the beginning. It also needs a cache in order: llama.cpp takes one cell after another as long as none was given back
since the cache was empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ..llamacpp.context import Context, common
from ..llamacpp.kv_state import KvPrefix

CUT = 16  # tokens of a prompt that are computed at once if an answer must repeat
FORGOTTEN = ""  # the adapter of sequences that nobody may share any more


@dataclass(eq=False)
class Sequence:
    """A row of cells."""

    id: int  # llama.cpp's
    adapter: str | None
    tokens: list[int]  # whose keys and values it holds
    cells: list[int] = field(repr=False)  # numbers of our own, one a token, those of virtual tokens first
    repeatable: int = 0  # tokens at its beginning that were computed in pieces of CUT
    virtual: int = 0  # positions before its first token


def nowhere() -> Sequence:
    """A sequence that waits: it holds nothing."""
    return Sequence(-1, None, [], [])


class KvCache:
    """The cache of a context, which is cleared. `working` are in use; `kept` are for reuse, oldest first.

    The context must have two sequences more than there are ever in progress. prefix_of: an adapter's.
    """

    def __init__(self, context: Context, prefix_of: Callable[[str | None], KvPrefix | None] = lambda _: None) -> None:
        self.size = context.size
        self._prefix_of = prefix_of
        self.working: list[Sequence] = []
        self.kept: list[Sequence] = []
        self._context = context
        self.clear()

    def clear(self) -> None:
        self._context.clear()
        self.working.clear()
        self.kept.clear()
        self._ids = list(range(self._context.sequences))
        self._holders: Counter[int] = Counter()  # of each cell
        self._next_cell = 0
        self.in_order = True  # whether the cells of each sequence follow one another

    @property
    def used(self) -> int:
        return len(self._holders)

    @property
    def free(self) -> int:
        """Available cells: those that nobody holds, or only kept sequences."""
        return self.size - len(self._at_work())

    def can_stay_in_order(self, count: int, sequences: int) -> bool:
        """Whether this many more tokens and sequences have room without giving cells back."""
        return self.in_order and len(self._ids) >= sequences and self.used + count <= self.size

    def missing(self, adapter: str | None, tokens: list[int], repeats: bool = False) -> int:
        """The number of free cells that these tokens would take."""
        count, source = self._alike(adapter, tokens, repeats)
        at_work = self._at_work()
        return self.needed(adapter, len(tokens)) - sum(cell in at_work for cell in source.cells[:count])

    def needed(self, adapter: str | None, count: int) -> int:
        """Cells of a sequence with this many tokens."""
        prefix = self._prefix_of(adapter)
        return count + (prefix.virtual if prefix else 0)

    def begin(self, adapter: str | None, tokens: list[int], repeats: bool = False) -> Sequence:
        """A new sequence with the known beginning of `tokens`, but the last. repeats: only pieces of CUT of it."""
        count, source = self._alike(adapter, tokens, repeats)
        if source in self.kept:  # it is the newest now
            self.kept.remove(source)
            self.kept.append(source)
        if not self._ids:
            self._drop(self.kept[0])
        known = tokens[:max(count - source.virtual, 0)]
        begun = Sequence(self._ids.pop(), adapter, known, source.cells[:count], virtual=source.virtual)
        begun.repeatable = min(len(known), source.repeatable)
        if count:
            self._context.copy(source.id, begun.id, count)
        self._holders.update(begun.cells)
        prefix = self._prefix_of(adapter)
        if prefix and count < prefix.size and prefix.begins(tokens[:-1]):
            self._restore(begun, prefix)
        self.working.append(begun)
        return begun

    def _restore(self, sequence: Sequence, prefix: KvPrefix) -> None:
        """Lets a sequence begin with a prefix, in place of what it holds."""
        self._let_go(sequence)
        self.make_room(prefix.size)
        self._context.restore(sequence.id, prefix.saved)
        sequence.virtual = prefix.virtual
        sequence.tokens.clear()
        sequence.cells.clear()
        self.extend(sequence, list(prefix.tokens), repeatable=True)

    def make_room(self, count: int) -> bool:
        """Drop kept sequences until this many cells are free; return whether they are."""
        while self.size - self.used < count and self.kept:
            self._drop(self.kept[0])
        return self.size - self.used >= count

    def extend(self, sequence: Sequence, tokens: list[int], repeatable: bool = False) -> None:
        """Note that these tokens were computed, in room that was made before. repeatable: as one of pieces of CUT."""
        new = len(tokens) if sequence.cells else sequence.virtual + len(tokens)
        cells = range(self._next_cell, self._next_cell + new)
        self._next_cell = cells.stop
        sequence.tokens += tokens
        sequence.cells += cells
        if repeatable:
            sequence.repeatable = len(sequence.tokens)
        self._holders.update(cells)

    def end(self, sequence: Sequence, keeps_order: bool) -> None:
        """Keep a sequence that is no longer in use; drop an older one that it continues. keeps_order: not if that gives
        cells back.
        """
        if sequence not in self.working:  # it is nowhere, or all was cleared
            return
        self.working.remove(sequence)
        for old in [old for old in self.kept if old.adapter == sequence.adapter]:
            is_shared = all(self._holders[cell] > 1 for cell in old.cells)
            if common(old.tokens, sequence.tokens) == len(old.tokens) and (is_shared or not keeps_order):
                self._drop(old)
        self.kept.append(sequence)
        if not sequence.tokens:
            self._drop(sequence)

    def forget(self, adapter: str) -> None:
        """Share nothing of an adapter any more. Its cells are given back when others need them, to stay in order."""
        for sequence in self.kept:
            if sequence.adapter == adapter:
                sequence.adapter = FORGOTTEN

    def _at_work(self) -> set[int]:
        return {cell for sequence in self.working for cell in sequence.cells}

    def _alike(self, adapter: str | None, tokens: list[int], repeats: bool) -> tuple[int, Sequence]:
        """The cells of the known beginning of `tokens`, without the last one, and the sequence that holds them."""
        count = 0
        source = nowhere()
        for sequence in [each for each in (*self.kept, *self.working) if each.adapter == adapter]:
            alike = common(sequence.tokens, tokens[:-1])
            if repeats:
                alike = self._whole(adapter, min(alike, sequence.repeatable))
            if sequence.virtual + alike <= count:
                continue
            held = self._context.held(sequence.id, sequence.virtual + alike)
            left = held - sequence.virtual
            if held > count and not (repeats and left != self._whole(adapter, left)):
                count = held
                source = sequence
        return count, source

    def _whole(self, adapter: str | None, count: int) -> int:
        """Return how many of `count` known tokens an answer that must repeat may share: pieces of CUT, the prefix."""
        prefix = self._prefix_of(adapter)
        least = len(prefix.tokens) if prefix else 0
        return max(least, count // CUT * CUT) if count >= least else 0

    def _drop(self, sequence: Sequence) -> None:
        self.kept.remove(sequence)
        self._let_go(sequence)
        self._ids.append(sequence.id)

    def _let_go(self, sequence: Sequence) -> None:
        """Frees the cells of a sequence that nobody else holds."""
        self._context.drop(sequence.id)
        for cell in sequence.cells:
            self._holders[cell] -= 1
            if not self._holders[cell]:
                del self._holders[cell]
                self.in_order = False
