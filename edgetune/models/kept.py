"""The inputs and activations of blocks that forward keeps for backward, in the arena or inputs in a file."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Backend
from ..disk import cache_folder, cannot_write
from ..errors import DiskError
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


class InputFile:
    """Room for the inputs of `count` blocks, arrays of up to `nbytes` bytes, if rows are too long for memory to hold
    them. Backward reads from the last to the first; one at a time is in memory. The file has no name, so nothing is
    left of it. Raises DiskError if the disk has no room.
    """

    def __init__(self, count: int, nbytes: int) -> None:
        self._nbytes = nbytes
        folder = cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file, name = tempfile.mkstemp(dir=folder)
            weakref.finalize(self, os.close, self._file)
            Path(name).unlink()
            os.posix_fallocate(self._file, 0, count * nbytes)
        except OSError as error:
            raise cannot_write(folder / "inputs", error) from None

    def write(self, place: int, array: np.ndarray) -> None:
        """Raises DiskError."""
        self._move(os.pwrite, place, array)

    def read(self, place: int, array: np.ndarray) -> None:
        """Sets an array to what was written of one of its size; those before it are read ahead. Raises DiskError."""
        self._move(lambda file, part, at: os.preadv(file, [part], at), place, array)
        if place:
            os.posix_fadvise(self._file, (place - 1) * self._nbytes, array.nbytes, os.POSIX_FADV_WILLNEED)

    def _move(self, move: Callable[[int, memoryview, int], int], place: int, array: np.ndarray) -> None:
        left = array.reshape(-1).data.cast("B")
        at = place * self._nbytes
        while left:
            try:
                done = move(self._file, left, at)
            except OSError as error:
                raise cannot_write(cache_folder() / "inputs", error) from None
            if not done:
                raise DiskError("the file of the inputs of blocks has ended", "train with --recompute block")
            left = left[done:]
            at += done
