"""The state of a run on disk: files checkpoint-STEP in its folder, of which the last two are kept, each written whole.

A file holds one line of JSON {"format": 1, "arrays": [[name, bytes], ...], "meta": {...}}, then the arrays' bytes, then
the SHA-256 of all of it. Arrays are written and read without a copy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..disk import cannot_write, replaced
from ..errors import FormatError, MismatchError

PREFIX = "checkpoint-"
KEPT = 2
FORMAT = 1
_CHUNK = 2**20
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Checkpoint:
    """A file whose checksum was right."""

    path: Path
    meta: dict[str, Any]
    arrays: tuple[tuple[str, int], ...]  # name and bytes, in the order of the file
    start: int  # where the first array begins

    def read(self, into: Callable[[str], np.ndarray]) -> None:
        """Fills the array into(name) of every name. Raises MismatchError before that where sizes differ."""
        for name, nbytes in self.arrays:
            if (wanted := into(name).nbytes) != nbytes:
                raise MismatchError(f"{self.path} holds {nbytes} bytes of {name}, this run {wanted}",
                                    "start a new run in another folder")
        with self.path.open("rb") as file:
            file.seek(self.start)
            for name, nbytes in self.arrays:
                if file.readinto(into(name).data.cast("B")) != nbytes:
                    raise FormatError(f"{self.path} changed while it was read", "try again")


def save(folder: Path, step: int, arrays: Mapping[str, np.ndarray], meta: dict[str, Any]) -> int:
    """Writes folder/checkpoint-STEP, removes all but it and the one before, and returns its bytes. meta must be JSON.

    Raises DiskError when the disk refuses; the older ones then remain.
    """
    path = folder / f"{PREFIX}{step}"
    sizes = [[name, array.nbytes] for name, array in arrays.items()]
    head = json.dumps({"format": FORMAT, "arrays": sizes, "meta": meta}).encode() + b"\n"
    parts: list[bytes | memoryview] = [head, *(array.data.cast("B") for array in arrays.values())]
    digest = hashlib.sha256()
    with replaced(path) as beside, beside.open("wb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
        file.write(digest.digest())
        nbytes = file.tell()
    before = [other for other in found(folder) if _step(other) < step][1 - KEPT:]
    _remove(other for other in found(folder) if other not in (path, *before))
    return nbytes


def newest(folder: Path) -> tuple[Checkpoint, list[str]]:
    """The newest whole checkpoint, and the defect of each newer one. Raises FormatError if none is whole."""
    wrong: list[str] = []
    for path in reversed(found(folder)):
        try:
            return _open(path), wrong
        except OSError as error:
            wrong.append(f"{path.name} cannot be read: {error.strerror}")
        except FormatError as error:
            wrong.append(error.what)
    raise FormatError(f"{folder} holds no checkpoint that is whole" + "".join(f", {what}" for what in wrong),
                      "start a new run in another folder")


def found(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the oldest first; their checksums are not checked."""
    return sorted((p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdecimal()), key=_step)


def remove_all(folder: Path) -> None:
    _remove(found(folder))


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from None


def _step(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def _open(path: Path) -> Checkpoint:
    """Raises FormatError unless the file's last bytes are the SHA-256 of all others."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < _DIGEST or _sha256(file, size - _DIGEST) != file.read():
            raise FormatError(f"{path.name} is damaged: its checksum is wrong")
        file.seek(0)
        head = json.loads(file.readline())
        if head["format"] != FORMAT:
            raise FormatError(f"{path.name} is of format {head['format']}, this edgetune reads {FORMAT}")
        return Checkpoint(path, head["meta"], tuple((name, nbytes) for name, nbytes in head["arrays"]), file.tell())


def _sha256(file: BinaryIO, nbytes: int) -> bytes:
    """The SHA-256 of the next nbytes."""
    digest = hashlib.sha256()
    while nbytes > 0 and (chunk := file.read(min(nbytes, _CHUNK))):
        digest.update(chunk)
        nbytes -= len(chunk)
    return digest.digest()
