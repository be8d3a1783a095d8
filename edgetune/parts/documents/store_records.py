"""Vector stores on disk: a folder each, with its record and its index."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ... import disk
from ...errors import EdgetuneError, FormatError
from ...persisted import from_json

FOLDER = "vector_stores"
RECORD = "store.json"
INDEX = "index"
IN_PROGRESS = "in_progress"
COMPLETED = "completed"
FAILED = "failed"
CANCELLED = "cancelled"
_NAME = re.compile("vs_[0-9a-f]{24}")

log = logging.getLogger("edgetune.daemon")


@dataclass(frozen=True)
class Attached:
    """A file in a vector store. status: in_progress, completed, cancelled or failed, and then error: why. batch: with
    which it was added.
    """

    id: str
    name: str
    bytes: int
    created_at: int
    status: str = IN_PROGRESS
    error: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    batch: str = ""

    @property
    def is_cancelled(self) -> bool:
        return self.status == CANCELLED


@dataclass(frozen=True)
class VectorStore:
    """A vector store. created_at, last_active_at: seconds since 1970. usage: bytes of its index. stale: whether this
    may hold files that left the store.
    """

    id: str
    name: str
    created_at: int
    last_active_at: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    usage: int = 0
    files: Sequence[Attached] = ()
    stale: bool = False

    @property
    def status(self) -> str:
        return IN_PROGRESS if any(file.status == IN_PROGRESS for file in self.files) else COMPLETED

    def batch(self, id: str) -> VectorStore:
        """This store with the files of a batch only."""
        return replace(self, files=[file for file in self.files if file.batch == id])

    def without_unread(self, batch: str) -> VectorStore:
        """This store, in which those files of a batch are cancelled that are not read yet."""
        return replace(self, files=[replace(file, status=CANCELLED) if (file.batch, file.status) == (batch, IN_PROGRESS)
                                    else file for file in self.files])

    def counts(self) -> dict[str, int]:
        """Files by their status, as OpenAI's object has them."""
        found = {name: sum(file.status == name for file in self.files)
                 for name in (IN_PROGRESS, COMPLETED, FAILED, CANCELLED)}
        return {**found, "total": len(self.files)}

    def with_file(self, file: Attached) -> VectorStore:
        """This store with a file, in place of one of the same id."""
        return replace(self, files=[*(each for each in self.files if each.id != file.id), file])

    def without_file(self, id: str) -> VectorStore:
        return replace(self, files=[each for each in self.files if each.id != id], stale=True)


class StoreRecords:
    """The folders of vector stores below a state folder."""

    def __init__(self, state: Path) -> None:
        self.folder = state / FOLDER
        disk.private_folder(self.folder)

    def load(self) -> dict[str, VectorStore]:
        """All stores by their ids, the oldest first. One whose record cannot be read is named in the log, and left."""
        found = {}
        for path in sorted(self.folder.iterdir()):
            if not _NAME.fullmatch(path.name) or path.is_symlink():
                continue
            for half in path.glob("*.tmp"):  # written when the daemon was killed; it may hold what was deleted since
                half.unlink(missing_ok=True)
            try:
                store = self._load(path)
            except EdgetuneError as error:
                log.warning("the vector store %s is left out: %s", path.name, error)
                continue
            if store:
                found[store.id] = store
            else:  # half made, or half deleted
                shutil.rmtree(path, ignore_errors=True)
        return dict(sorted(found.items(), key=lambda each: (each[1].created_at, each[0])))

    @staticmethod
    def _load(path: Path) -> VectorStore | None:
        content = disk.read_object(path / RECORD, "remove the folder, or restore it")
        if content is None:
            return None
        try:
            files = [from_json(Attached, each, "a file") for each in content.pop("files")]
            return replace(from_json(VectorStore, {**content, "files": []}, "the record"), files=files)
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path / RECORD} is damaged: {error}", "remove the folder, or restore it") from None

    def save(self, store: VectorStore) -> None:
        """Writes a store's record. Raises DiskError."""
        folder = self.folder / store.id
        disk.private_folder(folder)
        with disk.replaced(folder / RECORD) as beside:
            beside.write_text(json.dumps(asdict(store)), encoding="utf-8")

    def index(self, id: str) -> Path:
        return self.folder / id / INDEX

    def remove(self, id: str) -> None:
        """Removes a store. Without its record it is none, also where the rest stays."""
        folder = self.folder / id
        (folder / RECORD).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
