"""A slot as a roll-out finds it."""

from pathlib import Path

from edgetune.formats.bundle import open_bundle, write_copy
from edgetune.formats.slot import LINK, SIDES, Slot


def write_slot(model: Path, path: Path) -> Slot:
    """Writes a slot with this base."""
    (path / SIDES[0]).mkdir(parents=True)
    write_copy(open_bundle(model), path / SIDES[0])
    (path / LINK).symlink_to(SIDES[0])
    return Slot(path)
