"""The daemon's option of its library."""

from __future__ import annotations

from dataclasses import dataclass

from ...manifest import PartOptions
from ...options import option


@dataclass(frozen=True)
class LibraryOptions(PartOptions):
    """The size of a library."""

    library_size: int = option(0, "MiB of the adapters among which NAME:auto chooses at most; 0: any.", low=0,
                               group="What it keeps")
