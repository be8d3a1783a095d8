"""The inputs and activations of blocks that forward keeps in the arena for backward."""

from __future__ import annotations

import numpy as np

from ..backends.arena import Arena
from .linear import Activations, RunShape


class Kept:
    """Views of an arena with "block_x" and the buffers that `widths` names, with their values a token. t: tokens of the
    batch, T.
    """

    def __init__(self, n_layer: int, widths: dict[str, int], run: RunShape, arena: Arena) -> None:
        self.n_layer = n_layer
        self.run = run
        self.arena = arena
        self.widths = widths
        self._views: dict[tuple[int, int], Activations] = {}

    def block_x(self, layer: int, t: int) -> np.ndarray:
        """The input of a trained block, [T, D]."""
        d = self.arena.buffers["block_x"].shape[2]
        return self.arena.part("block_x", layer - self.run.lowest, t, d)

    def of(self, layer: int, t: int) -> Activations:
        """The activations of a block, [T, width] each ([T] where the width is 1)."""
        copy = max(layer - (self.n_layer - self.run.kept), 0)  # blocks that are not kept share the lowest one's
        if (kept := self._views.get((copy, t))) is not None:
            return kept
        if len(self._views) > self.n_layer:  # of a pass: one a block, and one of the last block's needed tokens
            self._views.clear()  # views of an earlier t
        kept = self._views[copy, t] = {}
        for name, width in self.widths.items():
            shape = (t * width,) if name.startswith("rstd") else (t, width)
            kept[name] = self.arena.part(name, copy, *shape)
        return kept
