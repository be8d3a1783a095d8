"""The inputs and activations of blocks that forward keeps for backward, in the arena or inputs in a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Backend
from .input_file import InputFile
from .linear import Activations, RunShape

# of a block, the names of activations that it does not have for itself, and their buffers
Lent = Mapping[int, Mapping[str, str]]
NOTHING: Lent = {}
NONE = -1


class Kept:
    """Views of an arena with "block_x" and buffers of activations. widths: of each block, their names with their values
    a token. t: tokens of the batch, T.
    """

    def __init__(self, widths: Sequence[Mapping[str, int]], run: RunShape, ops: Backend, arena: Arena,
                 lent: Lent = NOTHING) -> None:
        self.n_layer = len(widths)
        self.run = run
        self.ops = ops
        self.arena = arena
        self.widths = widths
        self._places = places_of(widths, run.kept, lent)
        self._views: dict[tuple[int, int], Activations] = {}
        self._file: InputFile | None = None
        self._there = NONE  # the block whose input is in memory, where the others are in the file
        if run.on_disk and "block_x" in arena:
            self._file = InputFile(self.n_layer - run.lowest, arena.buffers["block_x"].nbytes)

    def keep_x(self, layer: int, x: np.ndarray) -> None:
        """Keeps the input of a trained block [T, D]. Raises DiskError."""
        self._there = layer
        kept = self.block_x(layer, len(x))
        self.ops.copy(kept, x)
        if self._file:
            self._file.write(layer - self.run.lowest, kept)

    def block_x(self, layer: int, t: int) -> np.ndarray:
        """The input of a trained block, [T, D]; from a file it is valid until that of another. Raises DiskError."""
        d = self.arena.buffers["block_x"].shape[2]
        if self._file is None:
            return self.arena.part("block_x", layer - self.run.lowest, t, d)
        kept = self.arena.part("block_x", 0, t, d)
        if layer != self._there:
            self._file.read(layer - self.run.lowest, kept)
            self._there = layer
        return kept

    def of(self, layer: int, t: int) -> Activations:
        """The activations of a block, [T, width] each ([T] where the width is 1)."""
        if (kept := self._views.get((layer, t))) is not None:
            return kept
        if len(self._views) > self.n_layer:  # of a pass: one a block, and one of the last block's needed tokens
            self._views.clear()  # views of an earlier t
        kept = self._views[layer, t] = {}
        for name, width in self.widths[layer].items():
            shape = (t * width,) if name.startswith("rstd") else (t, width)
            kept[name] = self.arena.part(*self._places[layer][name], *shape)
        return kept


def places_of(widths: Sequence[Mapping[str, int]], kept: int, lent: Lent = NOTHING) -> list[dict[str, tuple[str, int]]]:
    """The buffer of each activation of a block, and which copy in it. Blocks that are not kept share the first.

    Activations of equal name and width share a buffer, which has that name where no others are wider. Those that are
    lent have a separate one, and one copy.
    """
    counts: Counter[str] = Counter()
    found = []
    for layer, buffers in enumerate(_buffers_of(widths)):
        is_kept = layer >= len(widths) - kept
        own = [buffer for name, buffer in buffers.items() if name not in lent.get(layer, {})]
        found.append({name: (buffer, counts[buffer] if is_kept else 0) for name, buffer in buffers.items()}
                     | {name: (buffer, 0) for name, buffer in lent.get(layer, {}).items()})
        counts.update(own if is_kept else ())
    return found


def copies_of(widths: Sequence[Mapping[str, int]], kept: int, lent: Lent = NOTHING) -> dict[str, tuple[int, int]]:
    """Buffer -> (copies, values a token), as `places_of` uses them. Blocks that share the dict of their widths are
    counted together: a planner asks for hundreds of plans.
    """
    first: dict[int, int] = {}
    are_kept: dict[int, int] = {}  # the first of blocks that share a dict -> how many of them are kept
    for layer, names in enumerate(widths):
        at = layer if layer in lent else first.setdefault(id(names), layer)
        are_kept[at] = are_kept.get(at, 0) + (layer >= len(widths) - kept)
    buffers = _buffers_of(widths)
    found: dict[str, tuple[int, int]] = {}
    for layer, count in are_kept.items():
        others = lent.get(layer, {})
        for name, width in widths[layer].items():
            buffer = others.get(name, buffers[layer][name])
            copies, _ = found.get(buffer, (0, width))
            found[buffer] = (copies + (0 if name in others else count), width)
    return {buffer: (max(1, copies), width) for buffer, (copies, width) in found.items()}


def _buffers_of(widths: Sequence[Mapping[str, int]]) -> list[dict[str, str]]:
    """The buffer of each activation of a block, where none is lent."""
    distinct = {id(names): names for names in widths}
    widest: dict[str, int] = {}
    for names in distinct.values():
        widest |= {name: max(width, widest.get(name, 0)) for name, width in names.items()}
    found = {key: {name: name if width == widest[name] else f"{name}/{width}" for name, width in names.items()}
             for key, names in distinct.items()}
    return [found[id(names)] for names in widths]
