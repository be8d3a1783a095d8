"""The GPU's backend on the emulator: its memory, how it finds and launches kernels, and what it does when they fail."""

import ctypes
import gc
import mmap
import threading
import weakref

import numpy as np
import pytest
from emulated import HERE, WHY_NOT, Emulated, cuda, put

from edgetune.backends.cpu import Cpu
from edgetune.backends.cuda import CHUNK, Cuda
from edgetune.errors import DeviceError

pytestmark = pytest.mark.skipif(HERE is None, reason=WHY_NOT)
ROWS = 5
D = 96


def norm(ops, inp, weight):
    out = ops.empty(inp.shape)
    ops.rmsnorm_forward(out, ops.empty((len(inp),)), put(ops, inp), ops.upload(weight), 1e-5)
    ops.synchronize()
    return out.copy()


@pytest.fixture
def inputs():
    rng = np.random.default_rng(1)
    return rng.normal(size=(ROWS, D)).astype(np.float32), rng.normal(size=D).astype(np.float32)


def test_ops_run_and_each_kernel_is_found_once(inputs):
    ops, driver = cuda()
    for _ in range(3):
        assert np.allclose(norm(ops, *inputs), norm(Cpu(1), *inputs), rtol=1e-5, atol=1e-6)
    assert len(driver.found) == 1
    assert (ops.isa, ops.threads, ops.working) == ("cuda emulated", 1, 1)
    assert ops.products("exact") == "float forward, float backward"
    assert ops.products("fast") == "bf16 forward, bf16 backward"
    assert ops.peak("fast") > ops.peak("exact")


def test_an_array_elsewhere_is_refused_before_anything_is_launched(inputs):
    ops, driver = cuda()
    inp, weight = inputs
    out = ops.empty(inp.shape)
    rstd = ops.empty((ROWS,))
    with pytest.raises(ValueError, match="rmsnorm_forward: weight is not in the device's memory"):
        ops.rmsnorm_forward(out, rstd, ops.place(inp), weight, 1e-5)
    with pytest.raises(ValueError, match="rmsnorm_forward: out is not in the device's memory"):
        ops.rmsnorm_forward(np.empty_like(inp), rstd, ops.place(inp), ops.upload(weight), 1e-5)
    assert driver.found == []


def test_what_is_allocated_after_the_first_op_is_reached_too(inputs):
    ops, _ = cuda()
    norm(ops, *inputs)
    x = ops.allocate(4 * ROWS * D).array.view(np.float32).reshape(ROWS, D)
    x[:] = inputs[0]
    ops.rmsnorm_forward(x, ops.empty((ROWS,)), x, ops.place(inputs[1]), 1e-5)
    ops.synchronize()
    assert np.allclose(x, norm(Cpu(1), *inputs), rtol=1e-5, atol=1e-6)


def test_memory_of_small_arrays_is_given_again_only_when_no_op_reads_it():
    ops, driver = cuda()
    first = ops.place(np.ones(50, np.float32))
    at = first.ctypes.data
    view = first[10:20]
    del first
    ops.synchronize()
    assert ops.empty((50,)).ctypes.data != at, "a view of it is there"
    del view
    assert ops.empty((50,)).ctypes.data != at, "an op may still read it"
    ops.synchronize()
    assert at in {made.ctypes.data for made in [ops.empty((60,)) for _ in range(2)]}
    for _ in range(2000):
        ops.empty((CHUNK // 4,), np.uint8)
        ops.synchronize()
    assert len(driver.memory) <= 2
    assert ops.place(np.empty(0, np.int32)).shape == (0,)


def test_memory_begins_as_zeros_and_is_zeros_after_it_was_discarded():
    ops, driver = cuda()
    memory = ops.allocate(3 * mmap.PAGESIZE)
    assert not memory.array.any()
    memory.array[:] = 7
    memory.discard(mmap.PAGESIZE)
    assert (memory.array[:mmap.PAGESIZE] == 7).all()
    assert not memory.array[mmap.PAGESIZE:].any()
    assert len(driver.memory) == 1


def test_all_memory_is_freed_with_it_but_what_an_array_is_over(inputs):
    gc.disable()  # no circle may keep gigabytes until it is found
    try:
        ops, driver = cuda(registers=True)
        norm(ops, *inputs)
        mapped = np.frombuffer(mmap.mmap(-1, 64 * mmap.PAGESIZE), np.uint8)
        ops.upload(mapped)
        kept = ops.allocate(1000).array
        gone = weakref.ref(ops)
        del ops
        assert gone() is None
        assert driver.registered == {}
        assert list(driver.memory) == [kept.ctypes.data]
        del kept
        assert driver.memory == {}
    finally:
        gc.enable()


def test_weights_are_read_where_they_are_mapped_each_page_registered_once():
    ops, driver = cuda(registers=True)
    page = mmap.PAGESIZE
    mapped = np.frombuffer(mmap.mmap(-1, 100 * page), np.uint8)
    parts = [mapped[100:40 * page + 7], mapped[40 * page + 7:80 * page], mapped[80 * page:99 * page + 5]]
    for part in parts:
        assert ops.upload(part) is part
    assert sum(driver.registered.values()) == 100 * page
    x = mapped[:99 * page].view(np.float32)  # over all that was registered, one part after the other
    with pytest.raises(ValueError, match="y is not in the device's memory"):
        ops.add(ops.empty((x.size,)), np.zeros_like(x))
    ops.rmsnorm_forward(ops.empty((99, page // 4)), ops.empty((99,)), x.reshape(99, -1), ops.empty((page // 4,)), 1e-5)


def test_weights_are_copied_where_pages_cannot_be_registered():
    ops, driver = cuda()
    mapped = np.frombuffer(mmap.mmap(-1, 20 * mmap.PAGESIZE), np.uint8)
    copy = ops.upload(mapped)
    assert copy.ctypes.data in driver.memory
    assert driver.constant == [copy.ctypes.data]
    assert np.array_equal(copy, mapped)
    vector = np.arange(16, dtype=np.float32)
    assert np.array_equal(ops.upload(vector), vector)


def test_another_thread_enters_first(inputs):
    ops, driver = cuda()
    norm(ops, *inputs)
    assert driver.entered == 0
    worker = threading.Thread(target=norm, args=(ops, *inputs))
    worker.start()
    worker.join()
    assert driver.entered == 1


class Broken(Emulated):
    """Cannot compile."""

    def find(self, kernel, fmt):
        super().find(kernel, fmt)
        raise DeviceError("the kernel cannot be compiled", "use the CPU")


def test_what_keeps_a_kernel_from_being_found_is_what_the_op_raises(inputs):
    driver = Broken()
    ops = Cuda(driver)
    for _ in range(2):  # the context can do no more
        with pytest.raises(DeviceError, match="the kernel cannot be compiled; use the CPU"):
            norm(ops, *inputs)
    assert len(driver.found) == 1


@pytest.mark.parametrize("what", ["launch", "query"])
def test_a_failure_of_the_driver_is_its_sentence(inputs, what):
    driver = Emulated()
    fails = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 700)  # an illegal address
    setattr(driver, what, ctypes.cast(fails, ctypes.c_void_p).value)
    ops = Cuda(driver)
    for _ in range(2):
        with pytest.raises(DeviceError, match="the emulated GPU failed"):
            norm(ops, *inputs)


def test_what_has_no_end_is_a_failure(inputs):
    driver = Emulated()
    asked = []
    answers = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 600 if len(asked) < 20 and not asked.append(1) else 0)
    driver.query = ctypes.cast(answers, ctypes.c_void_p).value or 0
    expected = norm(Cpu(1), *inputs)
    assert np.allclose(norm(Cuda(driver), *inputs), expected, rtol=1e-5, atol=1e-6)
    assert len(asked) == 20
    never = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 600)
    driver.query = ctypes.cast(never, ctypes.c_void_p).value or 0
    driver.patience = 20
    with pytest.raises(DeviceError, match="the emulated GPU failed"):
        norm(Cuda(driver), *inputs)


def test_scratch_is_given_before_the_first_op(inputs):
    ops, driver = cuda()
    memory = ops.allocate(ops.scratch_bytes)
    with pytest.raises(ValueError, match="a GPU needs"):
        ops.use_scratch(memory.array[:64])
    ops.use_scratch(memory.array)
    norm(ops, *inputs)
    assert sum(len(made) for made in driver.memory.values()) < 2 * ops.scratch_bytes
    with pytest.raises(RuntimeError, match="computes already"):
        ops.use_scratch(memory.array)
    with pytest.raises(ValueError, match="2 threads cannot work"):
        ops.working = 2
