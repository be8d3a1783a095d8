"""Passes of blocks that run again without Python, on a backend that has tapes.

Between two ops Python's objects leave the processor's caches, so that a call costs several times what it costs in a
loop: of a step of 64 tokens a seventh. The arguments of a block's ops follow from the number of tokens, because their
data is at the same places of the arena. So a block is written on a tape in the first two passes, and runs from it in
later ones.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from ..backends.base import Backend, Tape


class Taped:
    """The tapes of a decoder, by what runs on them."""

    def __init__(self, ops: Backend) -> None:
        self._ops = ops
        self._tapes: dict[Hashable, Tape | None] = {}

    def run(self, key: Hashable | None, tokens: int, ops: Callable[[], None]) -> None:
        """Runs ops, which hold to `Tape.run` whenever the key is the same. None: they never do."""
        if key is None:
            ops()
            return
        if key not in self._tapes:
            self._tapes[key] = self._ops.tape()
        if (tape := self._tapes[key]) is None:
            ops()
        else:
            tape.run(tokens, ops)
