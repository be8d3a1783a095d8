"""A folder of the state whose files (or folders) rows of the database name. Entries may be complete, cut off, or
without their row.

An entry is called NAME.tmp from before its row is written until after that, and again while its row is deleted. So
entries that a kill left half done are marked. Any other entry without a row had one once: the database was lost, or
restored from an earlier copy. Such entries are never removed; they are set aside in STATE/lost, for a person to decide.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ... import disk
from ...errors import DiskFullError, FormatError

log = logging.getLogger("edgetune.daemon")
LOST = "lost"
_HALF = re.compile(r"(\.\d+)?\.tmp$")


class Shelf:
    """STATE/`kind`, made if missing. names: a pattern of its entries; others, and all links, are left alone."""

    def __init__(self, state: Path, kind: str, names: str) -> None:
        self.folder = state / kind
        self.lost = state / LOST / kind
        self._names = re.compile(names)
        disk.private_folder(self.folder)
        self._opened = self._identity()

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self.folder.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def is_there(self) -> bool:
        """Returns whether the folder is the one that was opened: a card may have been taken out since then."""
        return self._identity() == self._opened

    def path(self, name: str) -> Path:
        """Returns the path of an entry, as `settle` left it. Raises FormatError for a name that does not match `names`.
        """
        path = self._named(name)
        half = self._half(name)
        return half if half.exists() and not path.exists() else path

    def tidy(self, named: Collection[str], done: Collection[str] = ()) -> None:
        """Tidies up at a start. named: entries that rows name. done: those no longer needed, which are removed."""
        for path in sorted(self.folder.iterdir()):
            name = _HALF.sub("", path.name)
            if path.is_symlink() or not self._names.fullmatch(name):
                continue
            try:
                if name in done or (path.name != name and (name not in named or (self.folder / name).exists())):
                    _remove(path)
                elif path.name != name:
                    path.rename(self.folder / name)
                elif name not in named:
                    self._set_aside(path)
            except OSError as error:
                log.warning("%s cannot be tidied away: %s", path, error.strerror or error)

    def _set_aside(self, path: Path) -> None:
        disk.private_folder(self.lost.parent)
        disk.private_folder(self.lost)
        target = self.lost / path.name
        number = 1
        while target.exists():
            number += 1
            target = self.lost / f"{path.name}.{number}"
        path.rename(target)
        log.warning("%s is named by no row of the database: set aside as %s", path, target)

    @contextmanager
    def filling(self, name: str) -> Iterator[Path]:
        """Yields a path to fill and sync before its row is written; after an error nothing remains. `settle` follows.
        """
        half = self._half(name)
        try:
            yield half
        except BaseException as error:
            _remove(half)
            if isinstance(error, OSError):
                raise disk.cannot_write(half, error) from None
            raise

    def settle(self, name: str) -> None:
        """Names the entry after its row is written. Where the disk refuses, the next start does: what has a row is
        kept, and `path` finds it meanwhile.
        """
        try:
            self._half(name).rename(self._named(name))
            disk.sync(self.folder)
        except OSError as error:
            log.warning("%s is not named yet: %s", self.folder / name, error.strerror or error)

    def remove(self, name: str, delete_row: Callable[[], None]) -> None:
        """Deletes a row, then the entry, if it is valid; on a full disk the entry first, to make room."""
        if not self._names.fullmatch(name):
            delete_row()
            return
        path = self.path(name)
        half = self._half(name)
        with suppress(OSError):  # it is gone already, or the disk is read-only, which the deletion of the row reports
            path.rename(half)
            path = half
        try:
            delete_row()
        except DiskFullError:
            _remove(path)
            delete_row()
        except BaseException:
            with suppress(OSError):
                path.rename(self.folder / name)
            raise
        _remove(path)

    def discard(self, name: str) -> None:
        """Removes an entry that a row no longer needs; if that fails now, the next start removes it."""
        _remove(self.path(name))

    def _named(self, name: str) -> Path:
        if not self._names.fullmatch(name):
            raise FormatError(f"{name!r:.80} is not a name in {self.folder}", "restore the database from a copy")
        return self.folder / name

    def _half(self, name: str) -> Path:
        return self._named(name).with_name(f"{name}.tmp")


def lost_things(state: Path) -> dict[str, int]:
    """Counts entries of each kind that are set aside."""
    kinds = sorted(path for path in (state / LOST).glob("*") if path.is_dir())
    counts = {path.name: sum(1 for _ in path.iterdir()) for path in kinds}
    return {kind: count for kind, count in counts.items() if count}


def _remove(path: Path) -> None:
    """Removes a file, a link (not its target) or a folder with its content; entries that cannot be removed stay."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
