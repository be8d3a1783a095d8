"""The small text files of /proc and /sys below a root; what does not exist reads as empty. All raise TooMuchError where
the system opens no further file now: a budget of what could be read would be too small until the next start.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..disk import read_small, refusal


def text(path: Path) -> str:
    try:
        return read_small(path).decode(errors="replace").strip("\0 \n")
    except OSError as error:
        if refused := refusal(error):
            raise refused from None
        return ""


def number(path: Path, base: int = 10) -> int | None:
    """A whole number, None for anything else ("max" too)."""
    return whole(text(path), base)


def whole(word: str, base: int = 10) -> int | None:
    try:
        return int(word, base)
    except ValueError:
        return None


def fields(path: Path, separator: str = ":") -> dict[str, str]:
    """"name: value" lines; of several processors the last one counts (on big.LITTLE boards a big one)."""
    parts = (line.partition(separator) for line in text(path).splitlines())
    return {key.strip(): value.strip() for key, _, value in parts}


def kib(path: Path, name: str) -> int:
    """Bytes of a "name: N kB" line, as in meminfo and status; 0 where there is none."""
    return (whole((fields(path).get(name) or "0").split()[0]) or 0) * 1024


def cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's cgroup and of those above it: a limit on any of them holds."""
    mount = root / "sys/fs/cgroup"
    for line in text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "", "")
        if controllers and controller not in controllers.split(","):
            continue
        top = mount / controller if controllers else mount
        folder = top / path.lstrip("/")
        for name in (folder, *folder.parents):
            if name.is_dir():
                yield name
            if name == top:
                break
