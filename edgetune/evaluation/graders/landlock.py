"""Files that this process may read, by Linux's Landlock (since 5.13): some folders, and nothing else; none is written.

See landlock(7) and linux/landlock.h, of which the constants are.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the calls' numbers on every architecture
_VERSION = 1  # flag that asks for the version
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # version: how many rights to files it knows
_TCP = 0b11  # bind and connect, from version 4
_SCOPES = 0b11  # abstract sockets and signals, from version 6


def version() -> int:
    """The version of the kernel's Landlock; 0: it has none."""
    return max(0, int(_libc().syscall(_CREATE, None, 0, _VERSION)))


def restrict(readable: Iterable[str]) -> None:
    """Let this thread read what is below these folders alone, from now on, for good; where the kernel has Landlock.

    `seccomp.no_new_privileges` first. Raises OSError.
    """
    known = version()
    if known == 0:
        return
    rights = (1 << _RIGHTS.get(known, 16)) - 1
    attributes = struct.pack("=QQQ", rights, _TCP if known >= 4 else 0, _SCOPES if known >= 6 else 0)
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    rules = _checked(_libc().syscall(_CREATE, attributes, size, 0))
    try:
        for path in readable:
            _allow(rules, path)
        _checked(_libc().syscall(_RESTRICT, rules, 0))
    finally:
        os.close(rules)


def _allow(rules: int, path: str) -> None:
    """Nothing happens for a path that does not exist, or is not for this user."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        access = _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE  # noqa: PTH112 (quick to import)
        _checked(_libc().syscall(_ADD, rules, _PATH_BENEATH, struct.pack("=Qi", access, place), 0))
    finally:
        os.close(place)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
