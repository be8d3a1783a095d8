"""NVIDIA's driver as cuda.py sees it: the first GPU, by the packages cuda-core and cuda-bindings.

They are imported where a GPU is used. On a GPU that shares the memory of the CPU (a Jetson) arrays are
page-locked, and weights are read where the file is mapped; on a card with its own memory the driver moves pages to
whoever reads them (managed memory). Not yet run on a card. The kernels' text travels with the package; NVRTC compiles
it for a card, and a unit is kept in the user's cache, under a name that follows from all that decides its bytes.
"""

from __future__ import annotations

import ctypes
import functools
import io
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..disk import cache, cache_folder, replaced
from ..errors import DeviceError, install_hint, size_text
from . import _native
from .base import Recorded
from .native import FORMATS

LEAST = (8, 0)  # compute capability: bf16 in the tensor cores, asynchronous copies
PATIENCE = 300_000  # milliseconds; a micro-batch takes seconds
ROOM = 256 << 20  # free bytes without which nothing is begun
RESUME = "what was saved is whole: resume from the last checkpoint"
READ_MOSTLY = 1  # CU_MEM_ADVISE_SET_READ_MOSTLY

# Operations a cycle of an SM, two for a multiplication and its sum: bf16 in tensor cores with sums in float, without
# zeros left out, and float. From the peaks, SMs and clocks that NVIDIA publishes of A100, RTX 3090, Orin, RTX 4090,
# H100, B200 and RTX 5090.
OPERATIONS = {"sm_80": (2048, 128), "sm_86": (512, 256), "sm_87": (2048, 256), "sm_89": (512, 256),
              "sm_90": (4096, 256), "sm_100": (8192, 256), "sm_120": (512, 256)}
OTHERS = (1024, 256)

_SENTENCES = {
    "OUT_OF_MEMORY": ("the GPU has no memory left", "lower --micro-batch or --max-length, or use --backend cpu"),
    "NO_DEVICE": ("the driver finds no GPU", "use --backend cpu"),
    "LAUNCH_TIMEOUT": ("the GPU hung: a kernel ran longer than its driver allows", RESUME),
    "NOT_READY": ("the GPU hung: it did not end what was begun on it", f"end this process; {RESUME}"),
    "ECC_UNCORRECTABLE": ("the GPU's memory has an error that cannot be corrected", RESUME),
}
INSTALLED = Path(__file__).parent / "cuda_sources"
CHECKOUT = Path(__file__).parents[2] / "native"
SHARED = ("et.h", "formats.def", "either.h", "adamw_rates.h")
"""Files outside cuda/ that kernels include."""
OPTIONS: dict[str, Any] = {"std": "c++17", "device_as_default_execution_space": True}  # et.h declares the ops too
NVRTC = ("libnvrtc.so.13", "libnvrtc.so.12")
CACHED = 512  # compiled units that are kept


def open_driver(library: ctypes.CDLL, say: Callable[[str], None]) -> CudaDriver:
    """The first GPU. Raises DeviceError where none can be used. library: libcuda; say: is told of what takes long."""
    nvrtc = find_nvrtc()  # and the packages
    from cuda.bindings import driver
    from cuda.core import Device
    try:
        return CudaDriver(library, driver, Device, nvrtc, say)
    except DeviceError:
        raise
    except Exception as error:  # cuda-core's own kind is private
        raise DeviceError(f"the GPU cannot be opened: {error}", "use --backend cpu") from None


class CudaDriver:
    """See cuda.Driver. library: libcuda; api: cuda.bindings.driver; device: cuda.core.Device."""

    def __init__(self, library: ctypes.CDLL, api: Any, device: Any, nvrtc: str, say: Callable[[str], None]) -> None:
        self._api = api
        self._library = library
        self._check_driver()
        self._device = device(0)
        major, minor = self._device.compute_capability
        if (major, minor) < LEAST:
            raise DeviceError(f"the GPU {self.card} has compute capability {major}.{minor}, at least "
                              f"{LEAST[0]}.{LEAST[1]} is needed", "use --backend cpu")
        self.name = f"sm_{self._device.arch}"
        self._device.set_current()
        free, _ = self._call("cuMemGetInfo")
        if free < ROOM:
            raise DeviceError(f"the GPU has {size_text(free)} of free memory, at least {size_text(ROOM)} are needed",
                              "end what else uses it, or use --backend cpu")
        self._integrated = bool(self._attribute("INTEGRATED"))
        if not self._integrated and not self._attribute("CONCURRENT_MANAGED_ACCESS"):
            raise DeviceError("this GPU's driver does not let CPU and GPU use memory at the same time",
                              "use --backend cpu")
        self._registers = bool(self._integrated and self._attribute("READ_ONLY_HOST_REGISTER_SUPPORTED")
                               and self._attribute("CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM"))
        self._queue = self._device.create_stream()
        self.stream = int(self._queue.handle)
        self.launch = _address(library, "cuLaunchKernel")
        self.query = _address(library, "cuStreamQuery")
        self.patience = PATIENCE
        self._hangs = False  # then nothing that waits for it is called any more
        self._compiler = Compiler(self.name, nvrtc, say)
        self._modules: dict[tuple[str, str], Any] = {}  # a module is unloaded with its object

    @property
    def card(self) -> str:
        return str(self._device.name)

    def _check_driver(self) -> None:
        (code,) = self._api.cuInit(0)
        if int(code):
            error = _error("cuInit", code)
            raise DeviceError(f"the NVIDIA driver does not work: {error.what}", "use --backend cpu")
        has = self._call("cuDriverGetVersion") // 1000
        wants = int(version("cuda-bindings").partition(".")[0])
        if has < wants:
            raise DeviceError(f"the NVIDIA driver is for CUDA {has}, the package cuda-bindings for {wants}",
                              install_hint("cuda"))

    def find(self, kernel: int, fmt: int) -> int:
        unit, name, for_weights = _native.KERNELS[kernel]
        only = next(known.name for known in FORMATS.values() if known.id == fmt) if for_weights else ""
        binary = None if (unit, only) in self._modules else self._compiler.binary(unit, only)
        try:
            if binary is not None:
                from cuda.core import ObjectCode
                self._modules[unit, only] = ObjectCode.from_cubin(binary)
            found = self._modules[unit, only].get_kernel(f"{name}_{only}" if only else name)
        except Exception as error:  # cuda-core's own kind is private
            raise DeviceError(f"the GPU's kernel {name} cannot be loaded: {error}",
                              "remove the folder kernels in edgetune's cache, or use --backend cpu") from None
        return int(found.handle)

    def enter(self) -> None:
        self._device.set_current()

    def allocate(self, nbytes: int) -> int:
        address = self._page_locked(nbytes) if self._integrated else self._managed(nbytes)
        self.clear(address, nbytes)
        return address

    def _page_locked(self, nbytes: int) -> int:
        address = int(self._call("cuMemHostAlloc", nbytes, self._api.CU_MEMHOSTALLOC_DEVICEMAP))
        if int(self._call("cuMemHostGetDevicePointer", address, 0)) != address:
            self._call("cuMemFreeHost", address)
            raise DeviceError("this GPU reaches memory under other addresses than the CPU", "use --backend cpu")
        return address

    def _managed(self, nbytes: int) -> int:
        """The driver would take more than the card has, and move pages to and fro."""
        free, _ = self._call("cuMemGetInfo")
        if nbytes > free:
            raise DeviceError(f"the GPU has {size_text(free)} of free memory, {size_text(nbytes)} more are needed",
                              "lower --memory, --micro-batch or --max-length, or use --backend cpu")
        return int(self._call("cuMemAllocManaged", nbytes, self._api.CUmemAttach_flags.CU_MEM_ATTACH_GLOBAL.value))

    def free(self, address: int) -> None:
        self._release("cuMemFreeHost" if self._integrated else "cuMemFree", address)

    def clear(self, address: int, nbytes: int) -> None:
        """Nothing is released: page-locked memory cannot be, and a card's own is no memory of this process."""
        self._call("cuMemsetD8Async", address, 0, nbytes, self._queue.handle)
        self._settle()

    def register(self, address: int, nbytes: int) -> bool:
        flags = self._api.CU_MEMHOSTREGISTER_READ_ONLY | self._api.CU_MEMHOSTREGISTER_DEVICEMAP
        if not self._registers:
            return False
        (code,) = self._api.cuMemHostRegister(address, nbytes, flags)
        return int(code) == 0

    def unregister(self, address: int) -> None:
        self._release("cuMemHostUnregister", address)

    def is_constant(self, address: int, nbytes: int) -> None:
        """Pages of a card that are only read may be in its memory and in the CPU's."""
        if self._integrated:
            return
        device = self._device.device_id  # cuda-bindings 13 takes another type here; the library's function stays
        self._library.cuMemAdvise(ctypes.c_uint64(address), ctypes.c_size_t(nbytes), READ_MOSTLY, device)

    def begin_recording(self) -> None:
        try:
            self._builder = self._queue.create_graph_builder()
            self._builder.begin_building()  # relaxed: other calls of this process are allowed meanwhile
        except Exception as error:  # cuda-core's own kind is private
            raise DeviceError(f"the GPU cannot record: {error}", RESUME) from None

    def end_recording(self) -> Recorded:
        builder = self._builder
        queue = self._queue
        try:
            graph = builder.end_building().complete()
        except Exception as error:
            raise DeviceError(f"the GPU cannot begin what it recorded: {error}", RESUME) from None
        finally:
            builder.close()

        def begin() -> None:
            try:
                graph.launch(queue)
            except Exception:
                raise self.failure() from None
        return begin

    def peak(self, precision: str) -> float:
        tensor, single = OPERATIONS.get(self.name, OTHERS)
        cycles = self._attribute("MULTIPROCESSOR_COUNT") * self._attribute("CLOCK_RATE") * 1e3
        return float((single if precision == "exact" else tensor) * cycles)

    def failure(self) -> DeviceError:
        (code,) = self._api.cuStreamQuery(self._queue.handle)
        if int(code) == 0:
            return DeviceError("the GPU could not begin a kernel", RESUME)
        self._hangs = _name(code) == "NOT_READY"
        return _error("cuStreamQuery", code)

    def _release(self, function: str, address: int) -> None:
        if not self._hangs:
            self._settle()
            self._call(function, address)

    def _settle(self) -> None:
        self._call("cuStreamSynchronize", self._queue.handle)

    def _attribute(self, name: str) -> int:
        attribute = getattr(self._api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call("cuDeviceGetAttribute", attribute, self._api.CUdevice(self._device.device_id)))

    def _call(self, name: str, *args: Any) -> Any:
        """The result of a function of the driver, or results. Raises DeviceError for its code."""
        code, *results = getattr(self._api, name)(*args)
        if int(code):
            raise _error(name, code)
        return results[0] if len(results) == 1 else results


def _error(function: str, code: Any) -> DeviceError:
    name = _name(code)
    return DeviceError(*_SENTENCES.get(name, (f"the GPU failed ({name} in {function})", RESUME)))


def _name(code: Any) -> str:
    return str(getattr(code, "name", code)).removeprefix("CUDA_ERROR_")


def _address(library: ctypes.CDLL, function: str) -> int:
    address = ctypes.cast(getattr(library, function), ctypes.c_void_p).value
    assert address
    return address


@functools.cache
def sources() -> Path:
    """The folder with SHARED and cuda/: of the installed package, or of a checkout."""
    return INSTALLED if INSTALLED.is_dir() else CHECKOUT


@functools.cache
def sources_digest() -> str:
    root = sources()
    files = [root / name for name in SHARED] + sorted(p for p in (root / "cuda").rglob("*") if p.is_file())
    digest = sha256()
    for file in files:
        digest.update(str(file.relative_to(root)).encode() + b"\0" + sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def find_nvrtc() -> str:
    """The version of NVRTC: the board's own (JetPack has it) where the loader finds it, else the wheel's.

    Raises DeviceError where there is none, or a package that calls it is missing.
    """
    try:
        from cuda.bindings import __version__ as bindings
        from cuda.bindings import nvrtc  # a torch may have brought these, without what follows
        from cuda.core import Program  # noqa: F401
    except ImportError as error:
        raise DeviceError(f"cuda-core is missing ({error})", install_hint("cuda")) from None
    with suppress(OSError):  # what is loaded already is taken; a wheel's would be preferred otherwise
        ctypes.CDLL(next(name for name in NVRTC if name.endswith(bindings.partition(".")[0])), ctypes.RTLD_GLOBAL)
    try:
        code, major, minor = nvrtc.nvrtcVersion()
    except RuntimeError as error:  # the loader's own kind is one
        raise DeviceError("NVRTC, which compiles the GPU's kernels, is missing",
                          f"{install_hint('cuda')} ({str(error).splitlines()[0]:.200})") from None
    if int(code):
        raise DeviceError(f"NVRTC does not work: {code}", "install nvidia-cuda-nvrtc-cu12 again")
    return f"{major}.{minor}"


def compile_unit(unit: str, fmt: str, architecture: str, **more: Any) -> tuple[bytes, str]:
    """(a binary for "sm_87" and the like, what the compiler said) of a unit; fmt: the only weight format, or "". more:
    options of cuda.core's compiler that change nothing of the binary.

    Raises DeviceError with the compiler's first line.
    """
    from cuda.core import Program, ProgramOptions
    root = sources()
    include = [str(folder) for folder in (root / "cuda" / "rtc", root / "cuda", root)]
    given = ProgramOptions(name=f"{unit}.cu", arch=architecture, include_path=include,
                           define_macro=f"ET_ONLY={fmt}" if fmt else None, **OPTIONS, **more)
    log = io.StringIO()
    text = (root / "cuda" / f"{unit}.cu").read_text(encoding="utf-8")
    try:
        compiled = Program(text, "c++", given).compile("cubin", logs=log)
    except Exception as error:  # cuda-core's own kind is private
        first = next((line for line in str(error).splitlines() if "error" in line), str(error))
        raise DeviceError(f"the kernels of {unit}.cu cannot be compiled for {architecture}: {first}",
                          "this is a defect of edgetune: --backend cpu works without them") from None
    return bytes(compiled.code), log.getvalue()


class Compiler:
    """Compiles for one card, or takes from the cache. say: is told once that it has begun to compile."""

    def __init__(self, architecture: str, nvrtc: str, say: Callable[[str], None]) -> None:
        self.architecture = architecture
        self._nvrtc = nvrtc
        self._say: Callable[[str], None] | None = say

    def binary(self, unit: str, fmt: str) -> bytes:
        """The machine code of a unit; errors as in `compile_unit`."""
        path = self._path(unit, fmt)
        with suppress(OSError):
            return path.read_bytes()
        if self._say:
            self._say(f"compiling the GPU's kernels for {self.architecture}; later runs find them in {path.parent}")
            self._say = None
        made, _ = compile_unit(unit, fmt, self.architecture)
        cache(path, lambda: _write(path, made), CACHED)
        return made

    def _path(self, unit: str, fmt: str) -> Path:
        words = [sources_digest(), unit, fmt, self.architecture, self._nvrtc, repr(OPTIONS)]
        return cache_folder() / "kernels" / f"{sha256(repr(words).encode()).hexdigest()}.cubin"


def _write(path: Path, made: bytes) -> None:
    with replaced(path) as temporary:
        temporary.write_bytes(made)
