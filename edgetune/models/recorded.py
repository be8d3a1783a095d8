"""Passes of the same sizes, recorded: on a device that takes long to begin each op by itself, or on a backend's tapes,
from which a block runs again without Python.

The arguments of a pass's ops follow from the sizes of its batch, because their data is at the same places of the arena.
So the second pass of a size is recorded, and later ones are begun as a whole. To have few sizes, batches are padded
(`fill`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from ..backends.base import Backend, Recorded, Tape

if TYPE_CHECKING:
    from ..data.packing import Batch

MOST = 32  # recorded passes at once; one takes about a MiB of a GPU's memory
GRANULE = 64  # tokens of a batch: the fewest that products on a GPU compute at a time


class Repeated:
    """The recorded passes of a decoder: the latest ones, and the sizes that were seen."""

    def __init__(self, ops: Backend) -> None:
        self._ops = ops
        self._seen: OrderedDict[Hashable, Recorded | None] = OrderedDict()

    def run(self, key: Hashable | None, ops: Callable[[], None]) -> None:
        """Runs ops, which are the same on the same memory whenever the key is. None: they never are."""
        if key is None or not self._ops.records:
            ops()
            return
        is_known = key in self._seen
        recorded = self._seen.pop(key, None)
        if is_known and recorded is None:
            recorded = self._ops.record(ops)
        self._seen[key] = recorded
        (recorded or ops)()
        if len(self._seen) > MOST:
            self._ops.synchronize()  # the one that goes may still run
            self._seen.popitem(last=False)

    def rounded(self, n: int, granule: int, most: int) -> int:
        """n, where passes are recorded up to a multiple of the granule, `most` at most."""
        return min(-(-n // granule) * granule, most) if self._ops.records else n

    def fill(self, batch: Batch, most: int) -> Batch:
        """Pads a batch with tokens that nothing sees, so that few sizes occur; prefixes and what follows them stay."""
        n = self.rounded(batch.computed, GRANULE, most)
        if n == batch.computed or batch.is_prefix or batch.behind:
            return batch
        return batch.filled(n)


class Taped:
    """The tapes of a decoder's blocks, by what runs on them; a block is written in its first two passes.

    Between two ops Python's objects leave the processor's caches, so that a call costs several times what it costs in
    a loop: of a step of 64 tokens a seventh.
    """

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
