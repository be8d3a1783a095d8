"""A GPU as a backend: one stream, the memory that it shares with this process, and its kernels, found at first use.

`Driver` (cuda_driver.py) hides NVIDIA's driver; tests have one that runs the same kernels on the
CPU, emulated. Kernels are launched by the C extension, which asks for each one's function once.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from ..errors import DeviceError
from . import _native
from .base import Array, Backend, Recorded
from .native import NativeOps

FIND = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
"""et_device.find: the owner, a kernel's number, a format's; returns the address of the function, or NULL."""
ALIGN = 256  # bytes; what a coalesced load of a warp reads
CHUNK = 1 << 20  # bytes that are allocated for small arrays at a time
SMALL = 1 << 16  # bytes of an array that stays, up to which it is one of these


class Driver(Protocol):
    """A GPU that is open. Addresses are those of this process, which the GPU reaches as well.

    name: of its kind, such as "sm_87". launch, query: addresses of cuLaunchKernel and cuStreamQuery, or of what stands
    for them; stream: the one that all ops run on; patience: milliseconds after which what has no end hangs.
    """

    name: str
    launch: int
    query: int
    stream: int
    patience: int

    def find(self, kernel: int, fmt: int) -> int:
        """The function of a kernel by its place in _native.KERNELS, for a weight's format by GGUF's number (0: none).

        Raises DeviceError where it cannot be compiled or loaded.
        """

    def enter(self) -> None:
        """Before the first call by another thread."""

    def allocate(self, nbytes: int) -> int:
        """The address of new memory, of zeros. Raises MemoryError."""

    def free(self, address: int) -> None:
        """Memory that it allocated, once the stream has nothing left to do."""

    def clear(self, address: int, nbytes: int) -> None:
        """Makes a part of what it allocated zeros, once the stream has nothing left to do, and releases what it can."""

    def register(self, address: int, nbytes: int) -> bool:
        """Whether these pages of this process, which are only read, are now read by the GPU where they are."""

    def unregister(self, address: int) -> None:
        """What began at this address is no longer read, once the stream has nothing left to do."""

    def begin_recording(self) -> None:
        """What is launched from now on is recorded, and not begun."""

    def end_recording(self) -> Recorded:
        """Ends it, also where something went wrong, and returns what begins all that was launched."""

    def is_constant(self, address: int, nbytes: int) -> None:
        """What it allocated does not change from now on."""

    def peak(self, precision: str) -> float:
        """Computes Backend.peak from the card's facts."""

    def failure(self) -> Exception:
        """What went wrong in the last call that failed."""


class Region:
    """Memory of a driver, freed once no array is over it."""

    def __init__(self, driver: Driver, nbytes: int) -> None:
        self._nbytes = max(nbytes, 1)
        self._driver = driver
        self.address = driver.allocate(self._nbytes)
        held = _Bytes(self.address, nbytes)
        weakref.finalize(held, driver.free, self.address).atexit = False
        self.array: Array = np.asarray(held)

    def discard(self, begin: int) -> None:
        if begin < self._nbytes:
            self._driver.clear(self.address + begin, self._nbytes - begin)


class _Bytes:
    """Bytes as numpy takes them; it lives as long as an array over them. died: called then."""

    def __init__(self, address: int, nbytes: int, died: Callable[[], None] = lambda: None) -> None:
        self._died = died
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}

    def __del__(self) -> None:
        self._died()


class _Pool:
    """Small arrays, of a power of two bytes. One that nobody refers to is given again after `recycle`."""

    def __init__(self) -> None:
        self._free: dict[int, list[Array]] = defaultdict(list)
        self._left: list[tuple[int, Array]] = []
        self._rest: Array = np.empty(0, np.uint8)  # of the last chunk

    def take(self, shape: tuple[int, ...], dtype: DTypeLike, allocate: Callable[[int], Array]) -> Array:
        """allocate: makes more memory, of this number of bytes."""
        kind = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        size = max(ALIGN, 1 << (nbytes - 1).bit_length()) if nbytes else ALIGN
        piece = self._free[size].pop() if self._free[size] else self._cut(size, allocate)
        left = self._left
        held = _Bytes(piece.ctypes.data, nbytes, lambda: left.append((size, piece)))
        return np.asarray(held).view(kind).reshape(shape)

    def recycle(self) -> None:
        while self._left:
            size, piece = self._left.pop()
            self._free[size].append(piece)

    def _cut(self, size: int, allocate: Callable[[int], Array]) -> Array:
        if size > self._rest.nbytes:
            self._rest = allocate(max(size, CHUNK))
        piece = self._rest[:size]
        self._rest = self._rest[size:]
        return piece


class Cuda(NativeOps, Backend):
    """A GPU by its driver. Raises DeviceError, in any op, for what goes wrong on it."""

    def __init__(self, driver: Driver) -> None:
        super().__init__("GPU", "a GPU needs")
        self._driver = driver
        self._thread = threading.get_ident()
        self._reached: list[tuple[int, int]] = []  # address and bytes of all memory that ops may be given
        self._errors: list[BaseException] = []
        self._find = _finder(driver, self._errors)
        self._kept: list[Any] = []  # memory that stays while this is open
        self._pages: set[int] = set()  # that are registered, by their number
        self._pool = _Pool()

    def _open(self, precision: int) -> _native._Context:
        driver = self._driver
        scratch = self._grow(self.scratch_bytes) if self._scratch is None else self._scratch
        find = ctypes.cast(self._find, ctypes.c_void_p).value
        assert find
        handle = _native.device_context(find, driver.launch, driver.query, driver.stream, driver.patience, precision,
                                        scratch)
        if isinstance(handle, int):
            raise MemoryError("there is no memory for the context of the GPU")
        for address, nbytes in self._reached:
            _native.add_memory(handle, address, nbytes)
        return handle

    @property
    def _handle(self) -> _native._Context:
        self._enter()
        return super()._handle

    def _enter(self) -> None:
        if threading.get_ident() != self._thread:
            self._driver.enter()
            self._thread = threading.get_ident()

    def _failure(self) -> Exception:
        """What kept a kernel from being found, or else what the driver says."""
        if not self._errors:
            return self._driver.failure()
        error = self._errors[0]
        if isinstance(error, Exception):
            return error
        raise error  # such as KeyboardInterrupt

    def synchronize(self) -> None:
        if self._context is not None:
            self._check(_native.synchronize(self._handle))
        self._pool.recycle()

    # ---- the device ---------------------------------------------------------------------------------------------

    @property
    def isa(self) -> str:
        return f"cuda {self._driver.name}"

    @property
    def threads(self) -> int:
        """1: of this process."""
        return 1

    @property
    def working(self) -> int:
        return 1

    @working.setter
    def working(self, threads: int) -> None:
        if threads != 1:
            raise ValueError(f"{threads} threads cannot work: a GPU has one")

    def peak(self, precision: str, backward: bool = False) -> float:  # noqa: ARG002  # both directions multiply alike
        return self._driver.peak(precision)

    @property
    def records(self) -> bool:
        return True

    def record(self, ops: Callable[[], None]) -> Recorded:
        self._enter()
        self._driver.begin_recording()
        try:
            ops()
        except BaseException:
            with contextlib.suppress(DeviceError):  # the first error says more
                self._driver.end_recording()
            raise
        recorded = self._driver.end_recording()

        def again() -> None:
            self._enter()
            recorded()
        return again

    def tape(self) -> None:
        return None

    # ---- memory -------------------------------------------------------------------------------------------------

    @property
    def scratch_bytes(self) -> int:
        return _native.scratch_bytes(1)

    @property
    def is_paged(self) -> bool:
        return False

    def allocate(self, nbytes: int, whole: bool = True) -> Region:  # noqa: ARG002
        region = Region(self._driver, nbytes)
        self._reach(region.address, max(nbytes, 1))
        self._kept.append(region)
        return region

    def upload(self, mapped: Array) -> Array:
        """The bytes themselves, where the GPU can read pages of a file; else a copy."""
        if mapped.nbytes <= SMALL:
            return self.place(mapped)
        if self._register(mapped):
            return mapped
        copy = self.allocate(mapped.nbytes)
        copy.array[:] = mapped.reshape(-1).view(np.uint8)
        self._driver.is_constant(copy.address, mapped.nbytes)
        return copy.array.view(mapped.dtype).reshape(mapped.shape)

    def place(self, array: Array) -> Array:
        placed = self._pool.take(array.shape, array.dtype, self._grow)
        placed[...] = array
        return placed

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        return self._pool.take(shape, dtype, self._grow)

    def _grow(self, nbytes: int) -> Array:
        return self.allocate(nbytes).array

    def _reach(self, address: int, nbytes: int) -> None:
        self._reached.append((address, nbytes))
        if self._context is not None:
            _native.add_memory(self._handle, address, nbytes)

    def _register(self, mapped: Array) -> bool:
        """Whether the GPU reads an array where it is. Arrays may share a page, which is registered once."""
        first = mapped.ctypes.data // mmap.PAGESIZE
        end = -(-(mapped.ctypes.data + mapped.nbytes) // mmap.PAGESIZE)
        while first in self._pages:
            first += 1
        while end - 1 in self._pages and end > first:
            end -= 1
        if end > first:
            address = first * mmap.PAGESIZE
            nbytes = (end - first) * mmap.PAGESIZE
            if not self._driver.register(address, nbytes):
                return False
            weakref.finalize(self, self._driver.unregister, address).atexit = False
            self._pages |= {first, end - 1}
            self._reach(address, nbytes)
        self._kept.append(mapped)
        return True


def _finder(driver: Driver, errors: list[BaseException]) -> Any:
    """The driver's `find` for C, which cannot raise: an error is appended to `errors`."""
    def find(_owner: int | None, kernel: int, fmt: int) -> int | None:
        try:
            return driver.find(kernel, fmt)
        except BaseException as error:
            errors.append(error)
            return None

    return FIND(find)
