"""The places of a house that is updated: HOUSE answers, HOUSE.new is the one that was trained, HOUSE.before the one
before. Whatever ends an update, and whenever, HOUSE opens afterwards.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from ...disk import alone, cannot_write, exchange, sync
from ...errors import NotFoundError

log = logging.getLogger("edgetune.parts.home")


def absolute(folder: str | Path) -> Path:
    """The folder of a house by a path that ends in its name, which "." and ".." do not."""
    return Path(os.path.abspath(folder))  # noqa: PTH100 (Path.resolve would follow a link to where the house is)


def trained_place(folder: Path) -> Path:
    """HOUSE.new."""
    return folder.with_name(f"{folder.name}.new")


def before_place(folder: Path) -> Path:
    """HOUSE.before."""
    return folder.with_name(f"{folder.name}.before")


def remove(path: Path) -> None:
    """Removes a folder, or a link to one, if it exists. Raises DiskError."""
    try:
        with suppress(FileNotFoundError):
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
    except OSError as error:
        raise cannot_write(path, error) from None


def replace_house(folder: Path, trained: Path) -> None:
    """Puts a trained house in the place of a house, which is kept as HOUSE.before. Raises DiskError.

    Where two folders cannot change places in one step, there is a moment without a house; see put_back.
    """
    before = before_place(folder)
    remove(before)
    try:
        trained.rename(before)
        sync(folder.parent)
        if not exchange(before, folder):
            before.rename(trained)
            folder.rename(before)
            sync(folder.parent)
            trained.rename(folder)
        sync(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error) from None


def put_back(folder: str | Path, facts: str) -> None:
    """Renames HOUSE.before to HOUSE if there is no HOUSE, because an update was killed. facts: a file of every house.

    Raises UsageError while an update runs, NotFoundError if the disk refuses.
    """
    folder = absolute(folder)
    before = before_place(folder)
    if os.path.lexists(folder) or not os.path.isfile(before / facts):  # noqa: PTH113 (it is no error if it is hidden)
        return
    with alone(before):
        if os.path.lexists(folder):
            return
        try:
            before.rename(folder)
            sync(folder.parent)
        except OSError as error:
            raise NotFoundError(f"there is no house {folder}, an update that was killed left it as {before}, and it "
                                f"cannot be renamed: {error.strerror}", "rename it to that") from None
    log.warning("an update of %s was killed: the house that was there before is in its place again", folder)
