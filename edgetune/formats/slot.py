"""A slot: a folder whose base a roll-out replaces while a daemon serves it, as A/B updates replace a system.

    current          a link to the side that is opened, a or b
    a/, b/           a bundle each; one of them may be missing

Whatever opens a model takes a slot, too: it opens the side that the link names. A side is only ever made whole, and the
link is replaced by one call of the system. So a power cut leaves a slot that opens.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .. import disk
from ..errors import FormatError

LINK = "current"
SIDES = ("a", "b")


@dataclass(frozen=True)
class Slot:
    """The slot in a folder that has one: see slot_of."""

    path: Path

    @property
    def side(self) -> str:
        """The side that is opened. Raises FormatError where the link names none."""
        link = self.path / LINK
        try:
            side = str(link.readlink())
        except OSError as error:
            raise FormatError(f"{link} cannot be read: {error.strerror}", "make the slot again") from None
        if side not in SIDES:
            raise FormatError(f"{link} leads to {side!r:.80}, it must lead to a or b", f"ln -sfn a {link}")
        return side

    @property
    def other(self) -> str:
        return SIDES[self.side == SIDES[0]]

    def folder(self, side: str) -> Path:
        return self.path / side

    def switch(self, side: str) -> None:
        """Lets this side be opened from now on. Raises DiskError."""
        beside = self.path / f"{LINK}.tmp"
        try:
            beside.unlink(missing_ok=True)
            beside.symlink_to(side)
            beside.replace(self.path / LINK)
            disk.sync(self.path)
        except OSError as error:
            raise disk.cannot_write(self.path / LINK, error) from None

    @contextmanager
    def filled(self, side: str) -> Iterator[Path]:
        """A new folder for a side that is not opened: it becomes the side at the end, whole. Raises DiskError."""
        self.clear(side)
        with disk.new_folder(self.folder(side)) as beside:
            yield beside

    def clear(self, side: str) -> None:
        """Removes a side that is not opened, and what was left of one. Raises ValueError for the one that is, and
        DiskError.
        """
        if side == self.side:
            raise ValueError(f"{self.path} opens its side {side}")
        try:
            for left in self.path.glob(f"{side}.*.tmp"):  # of what was broken off
                shutil.rmtree(left)
            with suppress(FileNotFoundError):  # renamed first: a side that is half removed is none
                shutil.rmtree(self.folder(side).rename(self.path / f"{side}.gone.tmp"))
        except OSError as error:
            raise disk.cannot_write(self.folder(side), error) from None


def slot_of(path: Path) -> Slot | None:
    """The slot in this folder; None where there is none."""
    return Slot(path) if (path / LINK).is_symlink() else None


def opened_side(path: Path) -> Path:
    """The side of a slot that is opened; any other path comes back unchanged. Raises FormatError."""
    slot = slot_of(path)
    return path if slot is None else slot.folder(slot.side)
