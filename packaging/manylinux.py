"""What both builds of wheels share: the limits of what a device must have, and how tools are run.

A wheel of these limits installs on Debian 12, Ubuntu 22.04 and all later ones. Needs pyelftools.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

TOP = Path(__file__).resolve().parents[1]
OLDEST = (2, 17)  # the glibc that manylinux begins to have names with
# the newest symbols of each that manylinux_2_34 may need: glibc is 2.35 in Ubuntu 22.04 and 2.36 in Debian 12
LIMITS = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13), "GCC": (7, 0, 0)}
EVERYWHERE = ("libc.so.", "libm.so.", "ld-linux", "libstdc++.so.6", "libgcc_s.so.1")


def run(*command: object, env: Mapping[str, str] | None = None, cwd: Path = TOP) -> str:
    """What a command prints. Exits with the end of what it said where it fails."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, env={**os.environ, **(env or {})},
                          capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def platform(libraries: Iterable[Path], machine: str) -> str:
    """The platform of a wheel with these libraries, named by the newest glibc that they need.

    Exits for one that needs symbols beyond LIMITS, or a library that is neither of these nor EVERYWHERE.
    """
    libraries = list(libraries)
    own = {library.name for library in libraries}
    newest = OLDEST
    for library in libraries:
        with library.open("rb") as file:
            elf = ELFFile(file)
            for needed in _needed(elf):
                if needed not in own and not needed.startswith(EVERYWHERE):
                    sys.exit(f"{library} needs {needed}, which a device may not have")
            for name in _versions(elf):
                kind, _, number = name.partition("_")
                if kind not in LIMITS:
                    continue
                version = tuple(int(part) for part in number.split(".")) if number[:1].isdigit() else ()
                if not version or version > LIMITS[kind]:
                    sys.exit(f"{library} needs {name}, at most {kind}_{'.'.join(map(str, LIMITS[kind]))} may be needed")
                if kind == "GLIBC":
                    newest = max(newest, version[:2])
    return f"manylinux_{newest[0]}_{newest[1]}_{machine}"


def _needed(elf: ELFFile) -> list[str]:
    return [tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")]


def _versions(elf: ELFFile) -> Iterator[str]:
    """Of the symbols that it takes from other libraries, such as GLIBC_2.34."""
    for section in elf.iter_sections():
        if isinstance(section, GNUVerNeedSection):
            for _, names in section.iter_versions():
                yield from (name.name for name in names)
