"""What this process may do from now on, by Linux: system calls by seccomp, and files that it may read by Landlock.

Landlock (since 5.13) leaves some folders to read, and nothing to write: landlock(7) and linux/landlock.h have the
constants. By the filter of system calls, those that are not in a list fail with EPERM.

The list has the calls that a Python program needs to compute, to import and to read. It has no calls for sockets,
processes, threads, signals to others, or changes of files and folders. Files can only be opened for reading. A call by
the numbers of another architecture ends the process. See seccomp(2) and linux/filter.h, the source of the constants.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the calls' numbers on every architecture
_VERSION = 1  # flag that asks for the version
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # version: how many rights to files it knows
_TCP = 0b11  # bind and connect, from version 4
_SCOPES = 0b11  # abstract sockets and signals, from version 6


def landlock_version() -> int:
    """The version of the kernel's Landlock; 0: it has none."""
    return max(0, int(_libc().syscall(_CREATE, None, 0, _VERSION)))


def restrict_files(readable: Iterable[str]) -> None:
    """Let this thread read what is below these folders alone, from now on, for good; where the kernel has Landlock.

    `no_new_privileges` first. Raises OSError.
    """
    known = landlock_version()
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


_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
_LOAD, _IF_EQUAL, _IF_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_HARMLESS = (0, 1, 2, 3, 1030)  # of fcntl: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC

# name: (x86_64, aarch64), None where it does not exist
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "brk": (12, 214), "madvise": (28, 233),
    "mincore": (27, 232), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "restart_syscall": (219, 128), "pread64": (17, 67), "readv": (19, 65),
    "writev": (20, 66), "stat": (4, None), "lstat": (6, None), "access": (21, None), "poll": (7, None),
    "select": (23, None), "pselect6": (270, 72), "ppoll": (271, 73), "newfstatat": (262, 79), "statx": (332, 291),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78),
    "getdents64": (217, 61), "getcwd": (79, 17), "statfs": (137, 43), "fstatfs": (138, 44), "dup": (32, 23),
    "getrlimit": (97, 163), "getrusage": (98, 165), "times": (100, 153), "sysinfo": (99, 179), "uname": (63, 160),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "futex": (202, 98), "set_robust_list": (273, 99), "set_tid_address": (218, 96), "rseq": (334, 293),
    "membarrier": (324, 283), "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, None), "getrandom": (318, 278),
    "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102), "exit": (60, 93), "exit_group": (231, 94),
}
_OPEN = (2, None)
_OPENAT = (257, 56)
_FCNTL = (72, 25)
_PRLIMIT = (302, 261)
_CLONE3 = (435, 435)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def lacks() -> str:
    """Why this kernel cannot filter the calls of a process; "" where it can."""
    if platform.machine() not in _ARCHITECTURES:
        return f"system calls of {platform.machine()} are not known here"
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, None, 0, 0)  # where it can, the address is what is wrong
    return "" if ctypes.get_errno() == errno.EFAULT else "the kernel has no seccomp"


def no_new_privileges() -> None:
    """Raises OSError."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def restrict_calls() -> None:
    """Filter the calls of this thread from now on, for good. `no_new_privileges` first. Raises OSError."""
    code = b"".join(_filter(platform.machine()))
    program = _Program(len(code) // 8, code)
    _prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program))


def _prctl(*arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(*arguments, *(0,) * (5 - len(arguments))) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _filter(machine: str) -> list[bytes]:
    """The filter's instructions: a list of tests, of which each ends with a verdict."""
    which = list(_ARCHITECTURES).index(machine)
    found = [_step(_LOAD, _ARCHITECTURE), _step(_IF_EQUAL, _ARCHITECTURES[machine], 1, 0), _step(_RETURN, _KILL),
             _step(_LOAD, _NUMBER)]
    for numbers in _ALLOWED.values():
        found += _case(numbers[which], [_step(_RETURN, _ALLOW)])
    for numbers, argument in ((_OPEN, 1), (_OPENAT, 2)):
        found += _case(numbers[which], [_argument(argument), _step(_IF_BITS, _WRITES, 0, 1), *_refused(),
                                        _step(_RETURN, _ALLOW)])
    allowed = [step for command in _HARMLESS for step in (_step(_IF_EQUAL, command, 0, 1), _step(_RETURN, _ALLOW))]
    found += _case(_FCNTL[which], [_argument(1), *allowed, *_refused()])
    found += _case(_PRLIMIT[which], [_argument(2), _step(_IF_EQUAL, 0, 1, 0), *_refused(), _argument(2, upper=True),
                                     _step(_IF_EQUAL, 0, 1, 0), *_refused(), _step(_RETURN, _ALLOW)])  # no new limit
    found += _case(_CLONE3[which], _refused(errno.ENOSYS))  # the C library then tries clone, which is refused
    return [*found, *_refused()]


def _case(number: int | None, steps: list[bytes]) -> list[bytes]:
    """Steps for one call, which end with a verdict; all others skip them."""
    return [] if number is None else [_step(_IF_EQUAL, number, 0, len(steps)), *steps]


def _refused(code: int = errno.EPERM) -> list[bytes]:
    return [_step(_RETURN, _ERRNO | code)]


def _argument(index: int, upper: bool = False) -> bytes:
    """Load the lower or upper 32 bits of an argument; both architectures are little-endian."""
    return _step(_LOAD, _ARGUMENTS + 8 * index + 4 * upper)


def _step(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """A struct sock_filter; the jumps are in instructions."""
    return struct.pack("=HBBI", code, if_true, if_false, k)
