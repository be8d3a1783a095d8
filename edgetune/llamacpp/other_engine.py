"""The contract of an engine that computes in llama.cpp's place, for adapters that llama.cpp cannot apply.

A Context (context.py) that has one leaves a batch to it while it `computes`. It keeps its own keys and values by the
numbers of sequences, so that whoever shares a context out need not know which engine computes what. V: vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class OtherEngine(Protocol):
    """computes: whether it does, now, and not llama.cpp."""

    computes: bool

    def compute(self, tokens: NDArray[np.int32], positions: NDArray[np.int32], sequences: NDArray[np.int32],
                wanted: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Returns the logits [n, V] after the wanted tokens of a batch; all arguments [T]. A token continues what its
        sequence holds. Raises EdgetuneError where there is no room for the keys and values.
        """

    def clear(self) -> None:
        """Forgets all sequences."""

    def cut(self, sequence: int, count: int) -> None:
        """Forgets what a sequence holds after its first `count` positions."""

    def copy(self, source: int, sequence: int, count: int) -> None:
        """Lets a sequence that holds nothing begin with the first positions of another one."""

    def held(self, sequence: int, count: int) -> int:
        """The most positions of a sequence, at most `count`, after which it can continue."""
