"""What was measured of a model, kept where a run is stopped: minutes of work that depend on source and text alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..disk import replaced

Arrays = dict[str, NDArray[Any]]


class Measured:
    """Arrays by the name of a measurement, in memory; in `folder` after `keep`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, Arrays] = {}

    def get(self, name: str, measure: Callable[[], Arrays]) -> Arrays:
        """What was measured under this name, in this run or in the one that it resumes; else measure() now."""
        if name not in self._found:
            path = self._path(name)
            self._found[name] = _load(path) if path.exists() else measure()
        return self._found[name]

    def keep(self) -> None:
        """Write all of it, for a run that resumes."""
        self.folder.mkdir(exist_ok=True)
        for name, arrays in self._found.items():
            if not self._path(name).exists():
                _save(self._path(name), arrays)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


def _save(path: Path, arrays: Arrays) -> None:
    """An array with several names is written once."""
    distinct = {id(array): array for array in arrays.values()}
    numbers = {key: number for number, key in enumerate(distinct)}
    stored = {f"array{numbers[key]}": array for key, array in distinct.items()}
    names = np.array(list(arrays))
    places = np.array([numbers[id(array)] for array in arrays.values()])
    with replaced(path) as beside, beside.open("wb") as file:
        np.savez(file, allow_pickle=False, names=names, places=places, **stored)


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as stored:
        arrays = [stored[f"array{number}"] for number in range(len(stored.files) - 2)]
        return {str(name): arrays[place] for name, place in zip(stored["names"], stored["places"], strict=True)}
