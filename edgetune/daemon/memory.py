"""Memory of the daemon's processes, by the kernel's count: memory that two of them map counts once."""

from __future__ import annotations

import ctypes
from pathlib import Path

import psutil


def pss(pid: int) -> int:
    """Returns the bytes of a process, and its part of shared ones; 0 where it is gone."""
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return 0


def give_back() -> None:
    """Returns freed memory to the kernel: glibc keeps some for each thread. Other libcs do not."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def beside(file: Path | None) -> int:
    """Returns this process's bytes in memory, without those that it has mapped of `file`, if one is named."""
    give_back()
    mappings = psutil.Process().memory_maps(grouped=False)
    return sum(mapping.rss for mapping in mappings if mapping.path != str(file))
