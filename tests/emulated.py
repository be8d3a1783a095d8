"""The driver of a GPU that is emulated on the CPU: the kernels' own text, compiled as C++ (`make cuda`)."""

import ctypes
import mmap
import weakref
from typing import Any

import numpy as np

from edgetune.backends import _native
from edgetune.backends.base import Recorded
from edgetune.backends.cuda import FIND, Cuda
from edgetune.errors import DeviceError

HERE = getattr(_native, "EMULATED", None)
WHY_NOT = "the extension was built without the emulator: make cuda"


class Emulated:
    """As cuda.Driver. What it is asked for is counted, and memory is filled with what was there before.

    registers: whether pages of the process can be read in place, as on a Jetson.
    """

    def __init__(self, registers: bool = False) -> None:
        assert HERE
        find, self.launch, self.query, *recording = HERE
        begin, end, again, forget = recording
        self._begin_recording: Any = ctypes.CFUNCTYPE(None)(begin)
        self._end_recording: Any = ctypes.CFUNCTYPE(ctypes.c_void_p)(end)
        self._again: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(again)
        self._forget: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(forget)
        self.recorded = 0
        self.begun = 0
        self.name = "emulated"
        self.stream = 0
        self.patience = 60_000
        self.registers = registers
        self.found: list[tuple[int, int]] = []
        self.entered = 0
        self.memory: dict[int, mmap.mmap] = {}
        self.registered: dict[int, int] = {}
        self.constant: list[int] = []
        self._find: Any = FIND(find)

    def find(self, kernel: int, fmt: int) -> int:
        self.found.append((kernel, fmt))
        address = self._find(None, kernel, fmt)
        if not address:
            raise DeviceError(f"the emulator has no kernel {_native.KERNELS[kernel]}")
        return int(address)

    def enter(self) -> None:
        self.entered += 1

    def allocate(self, nbytes: int) -> int:
        made = mmap.mmap(-1, nbytes)
        address = ctypes.addressof(ctypes.c_char.from_buffer(made))
        self.memory[address] = made
        return address

    def free(self, address: int) -> None:
        del self.memory[address]

    def clear(self, address: int, nbytes: int) -> None:
        ctypes.memset(address, 0, nbytes)

    def register(self, address: int, nbytes: int) -> bool:
        if self.registers:
            assert not any(begin < address + nbytes and address < begin + size
                           for begin, size in self.registered.items()), "a page is registered twice"
            self.registered[address] = nbytes
        return self.registers

    def unregister(self, address: int) -> None:
        del self.registered[address]

    def begin_recording(self) -> None:
        self._begin_recording()

    def end_recording(self) -> Recorded:
        kept = self._end_recording()
        self.recorded += 1

        def begin() -> None:
            self.begun += 1
            self._again(kept)
        weakref.finalize(begin, self._forget, kept)
        return begin

    def is_constant(self, address: int, nbytes: int) -> None:  # noqa: ARG002
        self.constant.append(address)

    def peak(self, precision: str) -> float:
        return 1e9 if precision == "exact" else 4e9

    def failure(self) -> Exception:
        return DeviceError("the emulated GPU failed")


def cuda(**options: Any) -> tuple[Cuda, Emulated]:
    driver = Emulated(**options)
    return Cuda(driver), driver


def put(ops: Any, array: np.ndarray) -> np.ndarray:
    """A copy that ops may write."""
    made: np.ndarray = ops.empty(array.shape, array.dtype)
    made[...] = array
    return made
