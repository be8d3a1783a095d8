"""What the machine says about itself right now: memory, pressure, heat, throttling, power, load. All below one root.

A few small files are read each time, which takes a millisecond or two. What does not exist stays None, 0 or empty.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TextIO

from ..disk import cannot_write
from ..errors import UsageError
from .device import memory, power_mode
from .procfs import cgroups, fields, kib, number, text, whole

# What the firmware of a Raspberry Pi says in get_throttled of the present; the soft limit of a 3B+ is not among them:
# there the clock is only a little lower.
_FIRMWARE = ((0, "the power supply gives too little voltage"), (1, "the firmware caps the clock"),
             (2, "the firmware throttles the cores"))
# The alerts that a Jetson counts, each slowing the cores for a moment.
_ALERTS = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "over-current"}
_CLOCK_COOLERS = ("cpufreq", "Processor", "devfreq")  # of kinds of cooling devices; the last is a GPU's
_TICKS = 10  # of the processors' clock between two looks, or it is too coarse
_WEIGHT = 0.3  # of the newest look in the average
_LOWEST_TRIP = 40.0  # degrees; trip points below are ways to say that there is none


@dataclass(frozen=True)
class Readings:
    """One look. Bytes, degrees Celsius, percent of the last ten seconds (stalls), processors (busy)."""

    minute: int = 0  # of the day, local time
    total: int = 0  # memory, a cgroup's limit respected; 0: unknown
    available: int = 0
    returned: int = 0  # what this process gave back, and takes again when it continues
    memory_stall: float = 0.0  # share of time in which some task waited for memory
    memory_stall_full: float = 0.0  # in which all did
    cpu_stall: float | None = None  # None: this kernel does not say
    killed: bool = False  # since the last look the kernel killed something in our cgroup for memory
    temperature: float | None = None
    zone: str = ""  # the hottest
    trip: float | None = None  # where the kernel itself begins to slow down
    throttled: str = ""  # by what, in words
    on_battery: bool = False
    battery: int | None = None  # percent
    processors: int = 1
    others_busy: float = 0.0  # processors kept busy by other processes, averaged over some looks
    foreground: bool = False  # someone is being answered
    gpu_load: float | None = None  # percent, by all together: the driver does not tell whose it is
    power_mode: str = ""  # a Jetson's


class Sensors:
    """Reads the files below `root`; `zones` are patterns of thermal zones or hwmon chips (none: no temperature).

    busy_file: while it exists (with a live process of its numbers, if any), someone is answered; `busy` may say so too.
    """

    def __init__(self, root: str | Path = "/", zones: tuple[str, ...] = (), busy_file: str = "",
                 busy: Callable[[], bool] | None = None,
                 local: Callable[[], time.struct_time] = time.localtime) -> None:
        self.root = Path(root)
        self._busy = busy
        self._local = local
        self._busy_file = self.root / Path(busy_file).absolute().relative_to("/") if busy_file else None
        if self._busy_file:
            _check_busy_file(self._busy_file)
        self._zones = list(_temperatures(self.root, zones))
        self._trip = min((trip for _, _, trip in self._zones if trip is not None), default=None)
        self._firmware = list(self.root.glob("sys/devices/platform/soc*/soc*firmware/get_throttled"))
        self._alerts = {path: number(path) or 0 for chip in _chips(self.root, "soctherm_oc")
                        for path in sorted(chip.glob("oc*_event_cnt"))}
        self._alarms = [chip / "in0_lcrit_alarm" for chip in _chips(self.root, "rpi_volt")]
        self._cooling = [folder / "cur_state" for folder in self.root.glob("sys/class/thermal/cooling_device*")
                         if any(word in text(folder / "type") for word in _CLOCK_COOLERS)]
        self._kills = self._kill_count()
        self._ticks = self._cpu_ticks()
        self._anonymous = 0
        self._others = 0.0

    def read(self) -> Readings:
        total, available = memory(self.root)
        anonymous = kib(self.root / "proc/self/status", "RssAnon")
        self._anonymous = max(self._anonymous, anonymous)
        some, full = self._memory_stall()
        kills = self._kills
        self._kills = self._kill_count()
        temperature, zone = max(((value / 1000, name) for name, path, _ in self._zones
                                 if (value := number(path)) is not None), default=(None, ""))
        on_battery, battery = self._power()
        processors, others = self._load()
        now = self._local()
        return Readings(now.tm_hour * 60 + now.tm_min, total, available, self._anonymous - anonymous, some, full,
                        _stall(self.root / "proc/pressure/cpu"), self._kills > kills, temperature, zone, self._trip,
                        self._throttled(), on_battery, battery, processors, others, self._foreground(),
                        gpu_load(self.root), power_mode(self.root))

    def _memory_stall(self) -> tuple[float, float]:
        """The stall of the machine or of our cgroup, whichever waits more."""
        files = [self.root / "proc/pressure/memory"]
        files += [folder / "memory.pressure" for folder in cgroups(self.root, "memory")]
        return tuple(max(_stall(file, kind) or 0.0 for file in files) for kind in ("some", "full"))  # type: ignore[return-value]

    def _kill_count(self) -> int:
        """Not counted are hits of a limit: page cache runs into it all the time, and is just dropped."""
        counts = (fields(folder / name, " ").get("oom_kill", "0") for folder in cgroups(self.root, "memory")
                  for name in ("memory.events", "memory.oom_control"))
        return sum(whole(count) or 0 for count in counts)

    def _throttled(self) -> str:
        for path in self._firmware:
            flags = number(path, 16) or 0
            for bit, words in _FIRMWARE:
                if flags >> bit & 1:
                    return words
        for path, before in self._alerts.items():
            self._alerts[path] = number(path) or 0
            if self._alerts[path] > before:
                return f"the board slowed down for {_ALERTS.get(path.name[:3], path.name)}"
        if any(number(path) == 1 for path in self._alarms):
            return _FIRMWARE[0][1]
        return "the kernel lowers the clock for heat" if any((number(path) or 0) > 0 for path in self._cooling) else ""

    def _power(self) -> tuple[bool, int | None]:
        """(on battery, percent of the emptiest battery); batteries of mice and the like do not count."""
        supplies = [folder for folder in self.root.glob("sys/class/power_supply/*")
                    if text(folder / "scope") != "Device"]
        batteries = [folder for folder in supplies if text(folder / "type") in ("Battery", "UPS")]
        plugs = [number(folder / "online") for folder in supplies if folder not in batteries]
        discharging = any(text(folder / "status") == "Discharging" for folder in batteries)
        percents = [percent for folder in batteries if (percent := number(folder / "capacity")) is not None]
        return discharging and 1 not in plugs, min(percents, default=None)

    def _load(self) -> tuple[int, float]:
        """(processors, those that others keep busy, averaged over some looks)."""
        ticks = self._cpu_ticks()
        passed, busy, own = (now - then for now, then in zip(ticks, self._ticks, strict=True))
        processors = max(sum(line.startswith("cpu") for line in text(self.root / "proc/stat").splitlines()) - 1, 1)
        if passed >= _TICKS * processors:
            self._ticks = ticks
            self._others += (max(busy - own, 0) / passed * processors - self._others) * _WEIGHT
        return processors, self._others

    def _cpu_ticks(self) -> tuple[int, int, int]:
        """Ticks of all processors since the start: (all, busy, busy with this process)."""
        columns = [whole(word) or 0 for word in fields(self.root / "proc/stat", " ").get("cpu", "").split()[:8]]
        own = text(self.root / "proc/self/stat").rpartition(")")[2].split()[11:13]
        return sum(columns), sum(columns) - sum(columns[3:5]), sum(whole(ticks) or 0 for ticks in own)

    def _foreground(self) -> bool:
        if self._busy is not None and self._busy():
            return True
        if self._busy_file is None or not self._busy_file.exists():
            return False
        processes = text(self._busy_file).split()
        return not processes or any(not pid.isdigit() or (self.root / "proc" / pid).exists() for pid in processes)


@contextmanager
def answering(busy_file: Path | None) -> Iterator[None]:
    """Tell training, by a file with our process number, that someone is being answered meanwhile (None: do not). Each
    answer adds a line, also where other processes have theirs; the last one removes the file.

    Raises EdgetuneError where the file cannot be written.
    """
    if busy_file is None:
        yield
        return
    _check_busy_file(busy_file)
    own = f"{os.getpid()}\n"
    with _locked(busy_file) as file:
        file.seek(0, os.SEEK_END)
        file.write(own)
    try:
        yield
    finally:
        with _locked(busy_file) as file:
            lines = file.readlines()
            if own in lines:
                lines.remove(own)
            file.truncate(0)
            file.writelines(lines)
            if not lines:
                busy_file.unlink(missing_ok=True)


def _check_busy_file(path: Path) -> None:
    """Raises UsageError for a pipe, whose reader would wait, or a device, whose reader would never end."""
    if path.exists() and not path.is_file():
        raise UsageError(f"busy-file is {path}, not a regular file", "name one, which need not exist yet")


@contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    """The file, made if it does not exist, which no other process changes or removes meanwhile. Raises DiskError."""
    try:
        while True:
            with path.open("a+") as file:
                with suppress(OSError):  # some network file systems have no locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    file.seek(0)
                    yield file
                    return
    except OSError as error:
        raise cannot_write(path, error) from None


def _temperatures(root: Path, zones: tuple[str, ...]) -> Iterator[tuple[str, Path, float | None]]:
    """(name, file with thousandths of a degree, the lowest trip point at which the kernel slows down)."""
    for folder in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        if any(fnmatchcase(text(folder / "type"), zone) for zone in zones):
            yield text(folder / "type"), folder / "temp", _trip(folder)
    for zone in zones:
        for chip in _chips(root, zone):
            yield text(chip / "name"), chip / "temp1_input", None


def _trip(folder: Path) -> float | None:
    trips = [(number(path) or 0) / 1000 for path in folder.glob("trip_point_*_temp")
             if text(path.with_name(path.name.replace("_temp", "_type"))) in ("passive", "hot")]
    return min((trip for trip in trips if trip >= _LOWEST_TRIP), default=None)


def _chips(root: Path, pattern: str) -> list[Path]:
    return [folder for folder in sorted(root.glob("sys/class/hwmon/hwmon*"))
            if fnmatchcase(text(folder / "name"), pattern)]


def _stall(path: Path, kind: str = "some") -> float | None:
    """The avg10 of a pressure file."""
    match = re.search(rf"^{kind} avg10=(\d+\.\d+)", text(path), re.M)
    return float(match[1]) if match else None


# ---- a Jetson's GPU ----------------------------------------------------------------------------------------------

# Where L4T's driver shows a Jetson's GPU: JetPack 5 has both of the first two names, 6 the second, 7 at least the last.
_GPU_FOLDERS = ("sys/devices/gpu.0", "sys/devices/platform/gpu.0", "sys/class/devfreq/*.gpu/device")
_GPU_CLOCKS = ("sys/class/devfreq/*.gpu/cur_freq", "sys/class/devfreq/*.ga10b/cur_freq")


def gpu_load(root: Path) -> float | None:
    """Percent of the time in which a Jetson's GPU computes, for whomever; None where no driver says so."""
    load = _first_number(root, [f"{folder}/load" for folder in _GPU_FOLDERS])  # thousandths
    return None if load is None else load / 10


def gpu_mhz(root: Path) -> int | None:
    """The clock of a Jetson's GPU at the moment."""
    clock = _first_number(root, _GPU_CLOCKS)
    return None if clock is None else clock // 1_000_000


def _first_number(root: Path, patterns: Iterable[str]) -> int | None:
    """The number in the first file that has one; the files appear when the driver is loaded, so they are looked for."""
    found = (number(path) for pattern in patterns for path in sorted(root.glob(pattern)))
    return next((value for value in found if value is not None), None)
