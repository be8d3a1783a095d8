"""What edgetune says to NVIDIA's driver, which answers here from a table: no card is needed, and none is shown to work.

A card that shares the CPU's memory and one with its own; too old, too small and too new ones; what fails while it runs.
"""

import ctypes
import mmap
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest

from edgetune.backends import cuda_driver
from edgetune.backends.cuda_driver import CudaDriver
from edgetune.errors import DeviceError

MIB = 1 << 20
Code = IntEnum("Code", {"CUDA_SUCCESS": 0, "CUDA_ERROR_OUT_OF_MEMORY": 2, "CUDA_ERROR_NO_DEVICE": 100,
                        "CUDA_ERROR_NOT_READY": 600, "CUDA_ERROR_ILLEGAL_ADDRESS": 700,
                        "CUDA_ERROR_LAUNCH_TIMEOUT": 702})
JETSON = {"INTEGRATED": 1, "CONCURRENT_MANAGED_ACCESS": 0, "READ_ONLY_HOST_REGISTER_SUPPORTED": 1,
          "CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM": 1, "MULTIPROCESSOR_COUNT": 8, "CLOCK_RATE": 1_000_000}
SERVER = JETSON | {"INTEGRATED": 0, "CONCURRENT_MANAGED_ACCESS": 1, "MULTIPROCESSOR_COUNT": 132}


class Api:
    """As the module cuda.bindings.driver. called: the names of its functions, in order."""

    CU_MEMHOSTALLOC_DEVICEMAP = 2
    CU_MEMHOSTREGISTER_READ_ONLY = 8
    CU_MEMHOSTREGISTER_DEVICEMAP = 2
    CUmemAttach_flags = SimpleNamespace(CU_MEM_ATTACH_GLOBAL=SimpleNamespace(value=1))

    def __init__(self, attributes, free=4096 * MIB, version=13000, shift=0):
        self.CUdevice_attribute = SimpleNamespace(**{f"CU_DEVICE_ATTRIBUTE_{name}": name for name in attributes})
        self.attributes = attributes
        self.answers: dict[str, Any] = {"cuMemGetInfo": (free, 2 * free), "cuDriverGetVersion": (version,)}
        self.fails: dict[str, Code] = {}
        self.shift = shift  # of the GPU's addresses
        self.called: list[str] = []
        self.memory: dict[int, mmap.mmap] = {}

    def __getattr__(self, name):
        def call(*args: Any):
            self.called.append(name)
            if name in self.fails:
                return (self.fails[name], None) if name == "cuMemGetInfo" else (self.fails[name],)
            made = getattr(self, f"_{name}", lambda *_: self.answers.get(name, ()))(*args)
            return (Code.CUDA_SUCCESS, *made)

        if not name.startswith("cu"):
            raise AttributeError(name)
        return call

    def CUdevice(self, number):
        return number

    def _cuDeviceGetAttribute(self, name, _device):
        return (self.attributes[name],)

    def _cuMemHostAlloc(self, nbytes, _flags):
        made = mmap.mmap(-1, nbytes)
        address = ctypes.addressof(ctypes.c_char.from_buffer(made))
        self.memory[address] = made
        return (address,)

    _cuMemAllocManaged = _cuMemHostAlloc

    def _cuMemHostGetDevicePointer(self, address, _flags):
        return (address + self.shift,)

    def _cuMemFreeHost(self, address):
        del self.memory[address]
        return ()

    _cuMemFree = _cuMemFreeHost


def device(number, capability=(8, 7)):
    assert number == 0
    return SimpleNamespace(name="Orin", compute_capability=capability, arch="".join(map(str, capability)), device_id=0,
                           set_current=lambda: None, create_stream=lambda: SimpleNamespace(handle=77))


class Library:
    """As libcuda: advice is counted."""

    def __init__(self):
        self.cuLaunchKernel = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
        self.cuStreamQuery = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
        self.advised = 0

    def cuMemAdvise(self, *_: Any):
        self.advised += 1
        return 0


def opened(api, made=device, library=None):
    return CudaDriver(library or Library(), api, made, "12.9", lambda _: None)


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    monkeypatch.setattr(cuda_driver, "version", lambda _name: "12.9.1")


def test_memory_of_a_jetson_is_page_locked_and_files_are_read_in_place():
    api = Api(JETSON)
    driver = opened(api)
    assert (driver.name, driver.stream) == ("sm_87", 77)
    address = driver.allocate(4096)
    assert "cuMemAllocManaged" not in api.called
    assert driver.register(4096, 8192)
    driver.unregister(4096)
    driver.is_constant(address, 4096)
    driver.free(address)
    assert api.memory == {}
    order = [name for name in api.called if name in ("cuStreamSynchronize", "cuMemHostUnregister", "cuMemFreeHost")]
    assert order[-4:] == ["cuStreamSynchronize", "cuMemHostUnregister", "cuStreamSynchronize", "cuMemFreeHost"]
    assert driver.peak("exact") == 8 * 256e9
    assert driver.peak("fast") == 8 * 2048e9
    api.fails["cuMemHostRegister"] = Code.CUDA_ERROR_OUT_OF_MEMORY
    assert not driver.register(4096, 8192)


def test_memory_of_a_card_is_managed_and_weights_are_copied():
    api = Api(SERVER)
    library = Library()
    driver = opened(api, lambda number: device(number, (9, 0)), library)
    address = driver.allocate(4096)
    assert "cuMemHostAlloc" not in api.called
    assert not driver.register(4096, 8192)
    driver.is_constant(address, 4096)
    assert library.advised == 1
    driver.free(address)
    assert "cuMemFreeHost" not in api.called
    with pytest.raises(DeviceError, match=r"has 4 GiB of free memory, 4\.88 GiB more are needed; lower --memory"):
        driver.allocate(5000 * MIB)


@pytest.mark.parametrize(("api", "capability", "says"), [
    (Api(JETSON), (7, 2), r"the GPU Orin has compute capability 7\.2, at least 8\.0 is needed; use --backend cpu"),
    (Api(JETSON, free=100 * MIB), (8, 7), "the GPU has 100 MiB of free memory, at least 256 MiB are needed"),
    (Api(SERVER | {"CONCURRENT_MANAGED_ACCESS": 0}), (9, 0), "does not let CPU and GPU use memory at the same time"),
    (Api(JETSON, version=11080), (8, 7), "the NVIDIA driver is for CUDA 11, the package cuda-bindings for 12; install"),
], ids=["old", "full", "apart", "driver"])
def test_a_gpu_that_cannot_be_used_is_refused(api, capability, says):
    with pytest.raises(DeviceError, match=says):
        opened(api, lambda number: device(number, capability))


def test_a_driver_without_a_gpu_and_one_with_other_addresses():
    api = Api(JETSON)
    api.fails["cuInit"] = Code.CUDA_ERROR_NO_DEVICE
    with pytest.raises(DeviceError, match="the NVIDIA driver does not work: the driver finds no GPU; use"):
        opened(api)
    driver = opened(Api(JETSON, shift=64))
    with pytest.raises(DeviceError, match="under other addresses"):
        driver.allocate(4096)


@pytest.mark.parametrize(("code", "says"), [
    (Code.CUDA_ERROR_ILLEGAL_ADDRESS, r"the GPU failed \(ILLEGAL_ADDRESS in cuStreamQuery\); what was saved"),
    (Code.CUDA_ERROR_NOT_READY, "the GPU hung: .*; end this process; what was saved is whole: resume from the last"),
    (Code.CUDA_ERROR_LAUNCH_TIMEOUT, "the GPU hung: .*; what was saved is whole: resume from the last checkpoint"),
    (Code.CUDA_ERROR_OUT_OF_MEMORY, "the GPU has no memory left; lower --micro-batch"),
    (None, "the GPU could not begin a kernel; what was saved is whole"),
], ids=str)
def test_what_fails_while_it_runs_is_a_sentence(code, says):
    api = Api(JETSON)
    driver = opened(api)
    if code is not None:
        api.fails["cuStreamQuery"] = code
    with pytest.raises(DeviceError, match=says):
        raise driver.failure()


def test_nothing_waits_for_a_gpu_that_hangs():
    api = Api(JETSON)
    driver = opened(api)
    address = driver.allocate(4096)
    api.fails["cuStreamQuery"] = Code.CUDA_ERROR_NOT_READY
    assert "hung" in str(driver.failure())
    api.called.clear()
    driver.free(address)
    driver.unregister(4096)
    assert api.called == []


class Builder:
    """As cuda.core's GraphBuilder: `did` says what was asked of it; `fails` is what raises."""

    def __init__(self, fails=""):
        self.fails = fails
        self.did: list[str] = []

    def __getattr__(self, name):
        def call(*_: Any):
            self.did.append(name)
            if name == self.fails:
                raise RuntimeError("not this card")
            return self
        return call


@pytest.mark.parametrize("fails", ["", "begin_building", "end_building", "complete", "launch"])
def test_a_recording_is_begun_as_a_whole_and_what_fails_is_a_sentence(fails):
    builder = Builder(fails)
    made = SimpleNamespace(**vars(device(0)) | {
        "create_stream": lambda: SimpleNamespace(handle=77, create_graph_builder=lambda: builder)})
    driver = opened(Api(JETSON), lambda _number: made)

    def record():
        driver.begin_recording()
        again = driver.end_recording()
        again()
        again()
    if not fails:
        record()
        assert builder.did == ["begin_building", "end_building", "complete", "close", "launch", "launch"]
        return
    with pytest.raises(DeviceError, match="; what was saved is whole: resume from the last checkpoint"):
        record()
    assert ("close" in builder.did) == (fails != "begin_building")
