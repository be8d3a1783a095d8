"""Memory of the daemon's processes, as the kernel counts it: what two of them map counts once."""

from __future__ import annotations

import ctypes
from pathlib import Path

from ..machine.procfs import kib, text


def pss(pid: int) -> int:
    """Bytes of a process, of what it shares its part; 0 where it is gone."""
    return kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def give_back() -> None:
    """Return memory that was freed to the kernel: glibc keeps it, a share for each thread. Other libcs do not."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def beside(file: Path) -> int:
    """Bytes of this process that are in memory, but for what it has mapped of `file`."""
    give_back()
    total = 0
    counts = True
    for line in text(Path("/proc/self/smaps")).splitlines():
        key, _, value = line.partition(":")
        if key == "Rss" and counts:
            total += int(value.split()[0]) * 1024
        elif " " in key:  # the first line of a mapping: addresses, rights, offset, device, inode, name
            counts = not line.endswith(f" {file}")
    return total
