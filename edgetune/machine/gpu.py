"""The load and the clock of a Jetson's GPU, which its driver shows in /sys."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .procfs import number

# Where L4T's driver shows a Jetson's GPU: JetPack 5 has both of the first two names, 6 the second, 7 at least the last.
_FOLDERS = ("sys/devices/gpu.0", "sys/devices/platform/gpu.0", "sys/class/devfreq/*.gpu/device")
_CLOCKS = ("sys/class/devfreq/*.gpu/cur_freq", "sys/class/devfreq/*.ga10b/cur_freq")


def gpu_load(root: Path) -> float | None:
    """Percent of the time in which a Jetson's GPU computes, for whomever; None where no driver says so."""
    load = _first(root, [f"{folder}/load" for folder in _FOLDERS])  # thousandths
    return None if load is None else load / 10


def gpu_mhz(root: Path) -> int | None:
    """The clock of a Jetson's GPU at the moment."""
    clock = _first(root, _CLOCKS)
    return None if clock is None else clock // 1_000_000


def _first(root: Path, patterns: Iterable[str]) -> int | None:
    """The number in the first file that has one; the files appear when the driver is loaded, so they are looked for."""
    found = (number(path) for pattern in patterns for path in sorted(root.glob(pattern)))
    return next((value for value in found if value is not None), None)
