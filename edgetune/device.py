"""The machine that we run on: what /proc and /sys say, and the board's profile from devices/*.toml.

Everything is read under `root`, so that a board can be described by a small folder. Bytes are bytes.
"""

from __future__ import annotations

import ast
import platform
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Part numbers of Arm's own cores (implementer 0x41); /proc/cpuinfo has no names on arm64.
_ARM_CORES = {
    0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
    0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE", 0xD49: "Neoverse-N2", 0xD4F: "Neoverse-V2",
}
_PR_SET_THP_DISABLE = 41
_UNLIMITED = 2**60  # cgroup v1 writes about 2^63 for "no limit"


@dataclass(frozen=True)
class Profile:
    """What devices/NAME.toml says of a board; `isa` is the row of kernels that it should run at least."""

    name: str
    isa: str
    machine: str
    model: str = ""  # part of the device tree's model; empty: any board of this machine


@dataclass(frozen=True)
class Device:
    """`cores` are physical ones that this process may use, memory is what its cgroup leaves of the machine's."""

    model: str
    machine: str
    cpu: str
    cores: int
    memory_total: int
    memory_available: int
    profile: Profile | None


def read_device(root: str | Path = "/") -> Device:
    """Describe the machine under `root`. What a file does not say comes back empty, cores as at least 1."""
    root = Path(root)
    machine = _text(root / "proc/sys/kernel/arch") or platform.machine()
    model = _text(root / "proc/device-tree/model") or _text(root / "sys/class/dmi/id/product_name")
    total, available = _memory(root)
    return Device(model, machine, _cpu(root), _cores(root), total, available, match_profile(model, machine))


def match_profile(model: str, machine: str, folder: Path | None = None) -> Profile | None:
    """The profile whose `model` is the longest that the board's own contains; one without is for any board."""
    fitting = [p for p in read_profiles(folder) if p.machine == machine and p.model in model]
    return max(fitting, key=lambda p: len(p.model), default=None)


def read_profiles(folder: Path | None = None) -> list[Profile]:
    """All profiles; those of the project lie in edgetune/devices (a wheel) or beside edgetune/ (the source tree)."""
    if folder is None:
        folder = Path(__file__).parent / "devices"
        folder = folder if folder.is_dir() else Path(__file__).parents[1] / "devices"
    return [Profile(**_flat_toml(path)) for path in sorted(folder.glob("*.toml"))]


def rss() -> int:
    """Bytes of this process that are in memory now, mapped files included."""
    return _status("VmRSS")


def peak_rss() -> int:
    """The largest rss() since the start, or since reset_peak_rss()."""
    return _status("VmHWM")


def peak_of_children() -> int:
    """The largest of the processes that this one has started and that have ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def reset_peak_rss() -> None:
    """Let peak_rss() count from now; where the kernel does not allow it, nothing changes."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def refuse_huge_pages() -> None:
    """Where the kernel gives huge pages to memory that did not ask, and so rounds it up, let this process have none."""
    if "[always]" in _text(Path("/sys/kernel/mm/transparent_hugepage/enabled")):
        import ctypes
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)


def trim() -> None:
    """Give the memory back that this process has freed but kept, where the C library can."""
    import ctypes  # only now: importing it costs memory too
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    return int(_fields(Path("/proc/self/status")).get(field, "0 kB").split()[0]) * 1024


def _memory(root: Path) -> tuple[int, int]:
    """Total and available bytes; a cgroup counts its page cache as used, but gives most of it back."""
    info = _fields(root / "proc/meminfo")
    total, available = (int(info.get(key, "0 kB").split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    for folder in _cgroups(root, "memory"):
        v1 = (folder / "memory.limit_in_bytes").exists()
        limits = ["memory.limit_in_bytes"] if v1 else ["memory.max", "memory.high"]
        used = _number(folder / ("memory.usage_in_bytes" if v1 else "memory.current")) or 0
        stat = _fields(folder / "memory.stat", " ")
        cache = int(stat.get("total_inactive_file" if v1 else "inactive_file", 0))
        for limit in (_number(folder / name) for name in limits):
            if limit is not None and limit < _UNLIMITED:
                total = min(total, limit)
                available = min(available, max(limit - used + cache, 0))
    return total, available


def _cores(root: Path) -> int:
    allowed = _cpu_list(_fields(root / "proc/self/status").get("Cpus_allowed_list", ""))
    topology = root / "sys/devices/system/cpu"
    siblings = [_text(topology / f"cpu{i}/topology/thread_siblings_list") or str(i) for i in allowed]
    cores = max(len(set(siblings)), 1)
    for folder in _cgroups(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not period:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # "max" and -1 are no limit
            cores = min(cores, max(int(quota) // int(period), 1))
    return cores


def _cpu(root: Path) -> str:
    info = _fields(root / "proc/cpuinfo")
    if "model name" in info:
        return info["model name"]
    if "CPU part" not in info:
        return ""
    implementer, part = int(info.get("CPU implementer", "0"), 0), int(info["CPU part"], 0)
    return _ARM_CORES.get(part, f"Arm part {part:#x}") if implementer == 0x41 else f"part {part:#x} of {implementer:#x}"


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's cgroup and of those above it: a limit on any of them holds."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mount / controller if controllers else mount
        folder = top / path.lstrip("/")
        for name in (folder, *folder.parents):
            if name.is_dir():
                yield name
            if name == top:
                break


def _cpu_list(text: str) -> list[int]:
    """"0-2,5" -> 0, 1, 2, 5."""
    ranges = (part.partition("-") for part in text.split(",") if part)
    return [cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)]


def _fields(path: Path, separator: str = ":") -> dict[str, str]:
    """"name: value" lines; of several processors the last one counts (on big.LITTLE boards a big one)."""
    parts = (line.partition(separator) for line in _text(path).splitlines())
    return {key.strip(): value.strip() for key, _, value in parts}


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _flat_toml(path: Path) -> dict[str, str]:
    """name = "value" lines, comments and blank lines: the TOML that profiles need (Python 3.10 has no tomllib)."""
    lines = (line.partition("=") for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {key.strip(): str(ast.literal_eval(value.strip())) for key, _, value in lines}
