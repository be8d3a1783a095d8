"""Memory of the daemon's processes, as the kernel counts it: what two of them map counts once."""

from __future__ import annotations

import ctypes
from pathlib import Path

import psutil


def pss(pid: int) -> int:
    """Bytes of a process, of what it shares its part; 0 where it is gone."""
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return 0


def give_back() -> None:
    """Return memory that was freed to the kernel: glibc keeps it, a share for each thread. Other libcs do not."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def beside(file: Path | None) -> int:
    """Bytes of this process that are in memory, but for what it has mapped of `file`, if one is named."""
    give_back()
    mappings = psutil.Process().memory_maps(grouped=False)
    return sum(mapping.rss for mapping in mappings if mapping.path != str(file))
