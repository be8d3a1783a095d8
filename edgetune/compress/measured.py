"""What a run has measured and made, kept from then on: a run that was stopped or killed continues with it.

What is returned is read back from the disk, also when it is new: so both runs compute with the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..disk import make_folder, new_folder, replaced

Arrays = dict[str, NDArray[Any]]
FACTS = "facts.json"  # in a folder of files that were made
HALF = ".tmp"  # how names end that a kill left half done
ROOM = 2**28  # bytes that stay free on the disk


class Measured:
    """Facts, arrays and files by the name of what measured or made them, below `folder`, which is made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder)
        for path in folder.glob(f"*{HALF}"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        return any(self.folder.glob(f"{name}.*")) or (self.folder / name).is_dir()

    def facts(self, name: str, measure: Callable[[], Any]) -> Any:
        """What measure() returned, as JSON has it: now, or in the run that this one continues. Raises DiskError."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            found = json.dumps(measure())
            with replaced(path) as beside:
                beside.write_text(found)
        return json.loads(path.read_text())

    def arrays(self, name: str, measure: Callable[[], Arrays]) -> Arrays:
        """The same for arrays by name. Where the disk has no room for them they are not kept."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            found = measure()
            distinct = {id(array): array.nbytes for array in found.values()}
            if sum(distinct.values()) + ROOM > shutil.disk_usage(self.folder).free:
                return found
            _save(path, found)
        with np.load(path, allow_pickle=False) as stored:
            arrays = [stored[f"array{number}"] for number in range(len(stored.files) - 2)]
            return {str(name): arrays[place] for name, place in zip(stored["names"], stored["places"], strict=True)}

    def made(self, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
        """The folder of files that make(folder) wrote, and the facts that it returned. Raises DiskError."""
        folder = self.folder / name
        if not folder.is_dir():
            with new_folder(folder) as beside:
                (beside / FACTS).write_text(json.dumps(make(beside)))
        return folder, json.loads((folder / FACTS).read_text())


def is_begun(folder: Path) -> bool:
    """Whether something is kept in a `Measured.folder`, which need not exist."""
    return any(path.suffix != HALF for path in folder.glob("*"))


def copy_files(folder: Path, to: Path) -> None:
    """What was made, without its facts, into another folder."""
    for path in sorted(folder.iterdir()):
        if path.name != FACTS:
            shutil.copyfile(path, to / path.name)


def _save(path: Path, arrays: Arrays) -> None:
    """An array with several names is written once."""
    distinct = {id(array): array for array in arrays.values()}
    numbers = {key: number for number, key in enumerate(distinct)}
    stored = {f"array{numbers[key]}": array for key, array in distinct.items()}
    names = np.array(list(arrays))
    places = np.array([numbers[id(array)] for array in arrays.values()])
    with replaced(path) as beside, beside.open("wb") as file:
        np.savez(file, allow_pickle=False, names=names, places=places, **stored)
