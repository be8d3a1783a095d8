"""Memory of the daemon's processes, by the kernel's count: memory that two of them map counts once."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from ..formats.gguf import Gguf
from ..machine.procfs import kib, text
from ..serving.memory import busy_bytes

_LISTS_CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children").exists()
SECONDS = 1.0  # that a reading may be old in a report
OBJECTS = 28 << 20  # bytes of Python's and the engine's objects of many requests at once, without logits
_OPTIONS = {  # of glibc's mallopt
    -8: 1,  # M_ARENA_MAX: one heap for all threads, for each keeps what its busiest moment took
    -3: 1 << 20,  # M_MMAP_THRESHOLD: it would grow with the blocks, and large ones would break up the heap
    -1: 1 << 20,  # M_TRIM_THRESHOLD: free bytes at the heap's end that are kept
}


def keep_little() -> None:
    """Lets malloc keep little of what a burst of requests took, before threads are started. Other libcs do anyway."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for option, value in _OPTIONS.items():
            mallopt(option, value)


def of_all_processes() -> int:
    """Returns the bytes of this process and of those below it; what they share counts once."""
    return sum(kib(Path(f"/proc/{process}/smaps_rollup"), "Pss") for process in _with_children(os.getpid()))


class MemoryReading:
    """What `of_all_processes` returned at most SECONDS ago, for reports: the kernel walks through all pages of the
    processes to count them, and a page asks twice in each look.
    """

    def __init__(self) -> None:
        self._bytes = 0
        self._until = 0.0
        self._lock = threading.Lock()

    def bytes(self) -> int:
        with self._lock:  # who asks meanwhile gets the same reading
            if time.monotonic() >= self._until:
                self._bytes = of_all_processes()
                self._until = time.monotonic() + SECONDS
            return self._bytes


def _with_children(process: int) -> Iterator[int]:
    """Yields a process and those below it. psutil reads a file of every process of the machine for that, and while
    other threads of Python work, each read waits for its turn: it is asked only where the kernel lists no children.
    """
    yield process
    if not _LISTS_CHILDREN:
        with suppress(psutil.Error):  # it has ended
            yield from (child.pid for child in psutil.Process(process).children(recursive=True))
        return
    threads: list[Path] = []
    with suppress(OSError):  # the process has ended
        threads = [*Path(f"/proc/{process}/task").iterdir()]
    for thread in threads:
        for child in text(thread / "children").split():
            yield from _with_children(int(child))


def give_back() -> None:
    """Returns freed memory to the kernel: glibc keeps some for each thread. Other libcs do not."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def for_answers(base: Gguf, context: int) -> int:
    """Returns the bytes that requests take of a process that has answered none by llama.cpp, with their objects."""
    return OBJECTS + busy_bytes(base, context)


def in_use(file: Path) -> tuple[int, int]:
    """Returns (bytes of this process in memory without those that it has mapped of `file`, these). Bytes of the file
    that are mapped twice, by llama.cpp and by our own engine, are in memory once.
    """
    give_back()
    mapped = 0
    total = 0
    is_file = False
    with Path("/proc/self/smaps").open(errors="surrogateescape") as lines:  # psutil takes five times as long
        for line in lines:
            if line.startswith("Rss:"):
                size = int(line.split()[1]) * 1024
                total += size
                mapped += size * is_file
            elif not line[0].isupper():  # "address-address ... name" begins a mapping, in small hexadecimal digits
                name = line.rstrip("\n").split(maxsplit=5)[5:]
                is_file = bool(name) and name[0].removesuffix(" (deleted)") == str(file)
    return total - mapped, min(mapped, file.stat().st_size)
