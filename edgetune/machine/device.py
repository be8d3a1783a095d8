"""The machine that we run on: what /proc and /sys say, and the board's profile from devices/*.toml.

Everything is read under `root`, so that a board can be described by a small folder. Bytes are bytes.

psutil serves where a process does not train (the daemon's memory.py). Here and in sensors.py it would not: it reads no
other root and no limits of cgroups, has no peak of a process, and takes 2 MiB of one that trains.
"""

from __future__ import annotations

import os
import platform
import re
import resource
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UsageError, size_text
from .procfs import cgroups, fields, kib, number, text, whole
from .toml import read_toml

# Part numbers of Arm's own cores (implementer 0x41); /proc/cpuinfo has no names on arm64.
_ARM_CORES = {
    0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
    0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE", 0xD49: "Neoverse-N2", 0xD4F: "Neoverse-V2",
}
_PR_SET_THP_DISABLE = 41
_UNLIMITED = 2**60  # cgroup v1 writes about 2^63 for "no limit"
_together = 0  # the most that `note_together` was told
_KERNEL_KEEPS = 0.25  # of the memory that a board has, at most: firmware, video and the kernel itself


@dataclass(frozen=True)
class Profile:
    """What devices/NAME.toml says of a board. What is not known is empty or 0.

    `isa` is the kernel set that it should run at least, `model` a part of the device tree's model (empty: any board
    of this machine), `memory_mib` the sizes that it is sold with. Temperatures are in degrees Celsius: from
    throttle_temp on the board slows down by itself, at critical_temp it does all it can or switches off. `zones` are
    the thermal zones (or hwmon chips) that count, as patterns. Training leaves `reserve_mib` to everything else.
    """

    name: str
    isa: str
    machine: str
    model: str = ""
    cpu: str = ""
    cores: int = 0
    ghz: float = 0.0
    memory_mib: tuple[int, ...] = ()
    storage: str = ""
    zones: tuple[str, ...] = ()
    throttle_temp: float = 0.0
    critical_temp: float = 0.0
    power_modes: tuple[str, ...] = ()
    reserve_mib: int = 0

    @property
    def available(self) -> int:
        """Bytes that are free on the smallest such board when little else runs; 0: its memory is not known."""
        return max(int(min(self.memory_mib, default=0) * (1 - _KERNEL_KEEPS)) - self.reserve_mib, 0) << 20


@dataclass(frozen=True)
class Device:
    """`cores` are physical ones that this process may use of the machine's `processors`; memory is what its cgroup
    leaves of the machine's `memory_installed`, in bytes. `matched` says why it is this profile, `power_mode` is a
    Jetson's.
    """

    model: str
    machine: str
    cpu: str
    cores: int
    processors: int
    memory_installed: int
    memory_total: int
    memory_available: int
    power_mode: str
    profile: Profile | None
    matched: str

    @property
    def name(self) -> str:
        return self.model or self.cpu or self.machine

    @property
    def kind(self) -> str:
        """The board, where a profile names it, and the architecture: what says nothing of its owner."""
        board = self.profile.name if self.profile and (self.profile.model or self.profile.cpu) else ""
        return f"{board}, {self.machine}" if board else self.machine

    def overrides(self) -> list[str]:
        """What holds here instead of what the profile or the whole machine would have, a sentence each."""
        found = []
        p = self.profile
        whole = max(p.cores if p else 0, self.processors)
        if self.cores < whole:
            found.append(f"{self.cores} cores of {whole} processors: hyper-threads count once, and CPU affinity, a "
                         "cgroup's CPU quota or the power mode may leave fewer")
        if self.memory_total < self.memory_installed:
            found.append(f"{size_text(self.memory_total)} of memory of {size_text(self.memory_installed)}: the limit "
                         "of a cgroup")
        if self.power_mode and p and p.power_modes and self.power_mode != p.power_modes[0]:
            found.append(f"power mode {self.power_mode}, not {p.power_modes[0]}: nvpmodel")
        if names := os.environ.get("EDGETUNE_ISA"):
            found.append(f"kernels {names}: the environment variable EDGETUNE_ISA")
        return found


def read_device(root: str | Path = "/") -> Device:
    """Describe the machine under `root`. What a file does not say comes back empty, cores as at least 1."""
    root = Path(root)
    machine = text(root / "proc/sys/kernel/arch") or platform.machine()
    model = text(root / "proc/device-tree/model") or text(root / "sys/class/dmi/id/product_name")
    cpu = _cpu(root)
    present = _cpu_list(text(root / "sys/devices/system/cpu/present"))  # also those that a power mode has switched off
    processors = len(present) or text(root / "proc/cpuinfo").count("processor\t")
    installed = kib(root / "proc/meminfo", "MemTotal")
    total, available = memory(root)
    profile, matched = match_profile(model, machine, cpu, processors, installed)
    return Device(model, machine, cpu, _cores(root), processors, installed, total, available, power_mode(root),
                  profile, matched)


def thread_count(asked: int = 0, root: str | Path = "/") -> int:
    """Threads to compute with: `asked`, or (0) one for each physical core that this process may use.

    A second thread on a core shares its arithmetic units and only adds waiting.
    """
    return asked or read_device(root).cores


def match_profile(model: str, machine: str, cpu: str = "", processors: int = 0, memory: int = 0,
                  folder: Path | None = None) -> tuple[Profile | None, str]:
    """The profile that fits best, and why: by the device tree's model; where none is to be read (in a container, for
    instance) by CPU, number of processors and memory in bytes; else the one for any board of this machine.
    """
    profiles = [p for p in read_profiles(folder) if p.machine == machine]
    named = [p for p in profiles if p.model and p.model in model]
    if named:
        return max(named, key=lambda p: len(p.model)), f"the board calls itself {model!r}"
    built = [p for p in profiles if p.cpu and (p.cpu, p.cores) == (cpu, processors)
             and any((1 - _KERNEL_KEEPS) * size <= memory / 2**20 <= size for size in p.memory_mib)]
    if len(built) == 1 and not model:
        return built[0], f"it has {processors} x {cpu} and {size_text(memory)} of memory, and no device tree to read"
    generic = next((p for p in profiles if not p.model), None)
    return generic, f"no board's profile fits, and this one is for any {machine}" if generic else "no profile fits"


def profile_named(name: str, folder: Path | None = None) -> Profile:
    """The profile of this name, in any case, with or without spaces and dashes; "pi 5" is enough where it is a part of
    one name only. "pi 4 2gb" is the one with 2 GiB of memory, if it is sold so; without, it has the least.

    Raises UsageError, with the names, for another.
    """
    profiles = read_profiles(folder)
    named = re.fullmatch(r"(.*?)(?:[\s-]+(\d+) ?gb)?", name.strip().lower())  # "pi-4-2gb": "pi4" with 2048 MiB
    assert named
    wanted, memory = _letters(named[1]), int(named[2] or 0) * 1024
    names = {_letters(p.name): p for p in profiles}
    fitting = [names[wanted]] if wanted in names else [p for key, p in names.items() if wanted and wanted in key]
    if len(fitting) > 1 or not fitting:
        problem = "could be " + " or ".join(p.name for p in fitting) if fitting else "is not known"
        raise UsageError(f"the device {name!r} {problem}", f"choose from {', '.join(p.name for p in profiles)}")
    if memory and memory not in (sold := fitting[0].memory_mib or (memory,)):
        raise UsageError(f"{fitting[0].name} is not sold with {memory / 1024:g} GB",
                         f"it has {', '.join(f'{size / 1024:g}' for size in sold)}")
    return replace(fitting[0], memory_mib=(memory,)) if memory else fitting[0]


def _letters(name: str) -> str:
    return re.sub(r"[\s-]", "", name.lower())


def board_named(name: str, memory: str = "") -> Profile:
    """profile_named, where its memory is known or `memory` (as --memory has it) does not depend on it."""
    board = profile_named(name)
    if not board.available and (not memory or memory.endswith("%")):
        raise UsageError(f"the memory of the device {board.name!r} is not known", "name a board, or give --memory")
    return board


def read_profiles(folder: Path | None = None) -> list[Profile]:
    """All profiles; the project's, if no folder is named."""
    return [*_profiles_of(folder or devices_folder())]


@cache  # a daemon reads its device at each request for its health
def _profiles_of(folder: Path) -> list[Profile]:
    files = [read_toml(path) for path in sorted(folder.glob("*.toml"))]
    written: list[dict[str, Any]] = [{name: tuple(value) if isinstance(value, list) else value
                                      for name, value in file.items()} for file in files]
    return [Profile(**facts) for facts in written]


def devices_folder() -> Path:
    """The project's data on devices: in edgetune/devices (a wheel) or next to edgetune/ (the source tree)."""
    folder = Path(__file__).parents[1] / "devices"
    return folder if folder.is_dir() else Path(__file__).parents[2] / "devices"


def is_removable(folder: Path, root: Path = Path("/")) -> bool:
    """Whether a folder is on an SD card, an eMMC or a USB stick, as far as the kernel says; writing wears these out."""
    number = folder.stat().st_dev
    try:
        block = (root / f"sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve(strict=True)
    except OSError:  # a file system without a device
        return False
    disk = block.parent if (block / "partition").exists() else block
    return disk.name.startswith("mmcblk") or text(disk / "removable") == "1"


def rss() -> int:
    """Bytes of this process that are in memory now, mapped files included."""
    return _status("VmRSS")


def peak_rss() -> int:
    """The largest rss() since the start, or since reset_peak_rss()."""
    return _status("VmHWM")


def shared_memory() -> int:
    """Bytes of files that are in memory for this process and for others, such as libraries."""
    return kib(Path("/proc/self/smaps_rollup"), "Shared_Clean")


def peak_of_children() -> int:
    """The largest of the processes that this one has started and that have ended, or, where `note_together` was told
    more, of this one with such a process.
    """
    return max(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, _together)


def note_together(nbytes: int) -> None:
    """Notes what this process and one that it started had at a time, pages of both counted once."""
    global _together
    _together = max(_together, nbytes)


def reset_peak_rss() -> None:
    """Let peak_rss() count from now; where the kernel does not allow it, nothing changes."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def refuse_huge_pages() -> None:
    """Lets this process have no huge pages where the kernel gives them to memory that did not ask, and rounds it up."""
    if "[always]" in text(Path("/sys/kernel/mm/transparent_hugepage/enabled")):
        import ctypes
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)


def trim() -> None:
    """Give the memory back that this process has freed but kept, where the C library can."""
    import ctypes  # only now: importing it costs memory too
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    return kib(Path("/proc/self/status"), field)


def memory(root: Path) -> tuple[int, int]:
    """Total and available bytes; a cgroup counts its page cache as used, but gives most of it back: here, as in the
    kernel's MemAvailable, all that is inactive and half of what is active.
    """
    total, available = (kib(root / "proc/meminfo", name) for name in ("MemTotal", "MemAvailable"))
    for folder in cgroups(root, "memory"):
        v1 = (folder / "memory.limit_in_bytes").exists()
        limits = ["memory.limit_in_bytes"] if v1 else ["memory.max", "memory.high"]
        used = number(folder / ("memory.usage_in_bytes" if v1 else "memory.current")) or 0
        stat = fields(folder / "memory.stat", " ")
        prefix = "total_" if v1 else ""
        inactive, active = (whole(stat.get(f"{prefix}{kind}_file", "0")) or 0 for kind in ("inactive", "active"))
        cache = inactive + active // 2
        for limit in (number(folder / name) for name in limits):
            if limit is not None and limit < _UNLIMITED:
                total = min(total, limit)
                available = min(available, max(limit - used + cache, 0))
    return total, available


def _cores(root: Path) -> int:
    allowed = _cpu_list(fields(root / "proc/self/status").get("Cpus_allowed_list", ""))
    topology = root / "sys/devices/system/cpu"
    siblings = [text(topology / f"cpu{i}/topology/thread_siblings_list") or str(i) for i in allowed]
    cores = max(len(set(siblings)), 1)
    for folder in cgroups(root, "cpu"):
        quota, _, period = text(folder / "cpu.max").partition(" ")
        if not period:
            quota = text(folder / "cpu.cfs_quota_us")
            period = text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # "max" and -1 are no limit
            cores = min(cores, max(int(quota) // int(period), 1))
    return cores


def _cpu(root: Path) -> str:
    info = fields(root / "proc/cpuinfo")
    if "model name" in info:
        return info["model name"]
    if "CPU part" not in info:
        return ""
    implementer = int(info.get("CPU implementer", "0"), 0)
    part = int(info["CPU part"], 0)
    return _ARM_CORES.get(part, f"Arm part {part:#x}") if implementer == 0x41 else f"part {part:#x} of {implementer:#x}"


def _cpu_list(listed: str) -> list[int]:
    """"0-2,5" -> 0, 1, 2, 5."""
    ranges = (part.partition("-") for part in listed.split(",") if part)
    return [cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)]


def power_mode(root: Path) -> str:
    """The name of a Jetson's power mode: nvpmodel keeps its number in a file, and the names in another."""
    _, _, mode = text(root / "var/lib/nvpmodel/status").partition(":")
    names = dict(re.findall(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", text(root / "etc/nvpmodel.conf"), re.M))
    return str(names.get(str(int(mode)), "")) if mode.isdigit() else ""
