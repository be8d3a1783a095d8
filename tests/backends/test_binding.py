"""The extension's own doors, driven from binding_ops.def: each argument of each function, wrong in every way."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgetune.backends import _native, cpu, native
from edgetune.backends.base import CACHE, HEAD_STATE, MOMENT_BYTES, MOMENTS, SAMPLE_STATE

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("stub", ROOT / "native" / "stub.py")
assert _spec
assert _spec.loader
stub = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stub)

OPS = stub.read_ops()
SIZES = {"T": 2, "Q": 1, "N": 3, "K": 4, "R": 1, "D": 4, "E": 6, "V": 5, "H": 2, "G": 1, "J": 3, "C": 4, "A": 2, "P": 3,
         "B": 5, "S": max(HEAD_STATE, SAMPLE_STATE), "L": 1, "M": CACHE, "W": 2, "X": 16, "Y": 64, "Z": 5, "f": 512,
         "n": 6, "r": 2, "u": 1}
REALS = {"sign": 1.0}
WHOLES = {"end": -1, "step": 1, "state": 16}
F32 = native.FORMATS["F32"].id
DTYPES = {"!": np.float64, "@": np.int32, "?": np.int32, "+": np.int32}


def usual(argument):
    """A value that the op takes."""
    if argument.kind == ".":
        return REALS.get(argument.name, 0.5)
    if argument.kind in "#$":
        return WHOLES.get(argument.name, 0)
    if argument.kind == "&":
        return np.zeros(MOMENT_BYTES, np.uint8)
    shape = [SIZES[letter] for letter in argument.letters]
    found = np.zeros(int(np.prod(shape)) if argument.flat else shape, DTYPES.get(argument.kind, np.float32))
    if argument.name == "before":  # no row before
        return found - 1
    if argument.name == "pieces":  # of all tokens, after no state
        return found + np.array([0, SIZES["T"], 0, -1, -1], found.dtype)
    if argument.name == "end":  # one document
        return found + found.dtype.type(found.size)
    return np.arange(found.size, dtype=found.dtype) if argument.name == "position" else found


def calls():
    """op -> (argument, value) for all that it takes after the context."""
    found = {}
    for name, arguments in OPS.items():
        found[name] = []
        for argument in arguments:
            found[name].append((argument, usual(argument)))
            if argument.kind == "%":
                found[name].append((argument._replace(kind="format"), F32))
    return found


def wrong(argument):
    """What no op may take for this argument."""
    if argument.kind == ".":
        return ["3", None, [1.0], 1j, 10**400]
    if argument.kind == "$":
        return ["3", None, 1.5, -1, 2**64]
    if argument.kind in ("#", "format"):
        return ["3", None, 1.5, 2**31, -(2**31) - 1, 10**400]
    right = usual(argument)
    other = np.float32 if argument.kind == "!" else np.float64
    values = ["3", 3.5, object(), [1.0], right.astype(other), right.astype(np.int64), right[:0]]
    if right.size > 1:
        values.append(np.repeat(right, 2, axis=-1)[..., ::2])
    if right.itemsize > 1:
        values.append(right.astype(right.dtype.newbyteorder(">")))
    if argument.kind not in "?/+":
        values.append(None)
    if argument.kind in "=^!?&":
        frozen = right.copy()
        frozen.flags.writeable = False
        values.append(frozen)
    if not argument.flat and argument.kind not in "&%":
        values.append(right[None])
    return values


@pytest.fixture(scope="module")
def context():
    made = _native.context(1, None, 0, np.zeros(cpu.scratch_bytes(1), np.uint8))
    assert not isinstance(made, int)
    return made


def test_the_stub_is_up_to_date_and_names_all_that_the_extension_has():
    assert stub.STUB.read_text() == stub.stub(), "run python native/stub.py"
    names = {name for name in dir(_native) if not name.startswith("_")}
    assert all(f"def {name}(" in stub.stub() or f"\n{name}: " in stub.stub() for name in names)
    assert set(OPS) < names


@pytest.mark.parametrize("name", OPS)
def test_usual_arguments_are_taken(context, name):
    assert getattr(_native, name)(context, *(value for _, value in calls()[name])) == 0


@pytest.mark.parametrize("name", OPS)
def test_each_argument_that_is_wrong_is_refused_by_name(context, name):
    op = getattr(_native, name)
    call = calls()[name]
    for i, (argument, _) in enumerate(call):
        for value in wrong(argument):
            arguments = [right for _, right in call]
            arguments[i] = value
            with pytest.raises((TypeError, ValueError), match=rf"^{name}: \w+ ") as error:
                op(context, *arguments)
            if np.size(value):  # of an empty array the first that it does not fit to may be named
                assert str(error.value).startswith(f"{name}: {argument.name} "), (argument, value)


@pytest.mark.parametrize("name", OPS)
def test_a_call_without_context_or_of_another_length_is_refused(context, name):
    op = getattr(_native, name)
    values = [value for _, value in calls()[name]]
    for other in (None, "context", 3, _native):
        with pytest.raises(TypeError, match=f"^{name} needs a context, not "):
            op(other, *values)
    for arguments in (values[:-1], [*values, 0], []):
        with pytest.raises(TypeError, match=f"^{name} takes .* not {len(arguments)} arguments"):
            op(context, *arguments)
    with pytest.raises(TypeError, match=f"^{name} needs a context"):
        op()


def device_context():
    """A context on a device that runs nothing."""
    made = _native.device_context(1, 1, 1, 0, 9, 0, np.zeros(cpu.scratch_bytes(1), np.uint8))
    assert not isinstance(made, int)
    return made


def test_only_a_device_has_memory_of_its_own(context):
    with pytest.raises(ValueError, match="add_memory: the context is the CPU's"):
        _native.add_memory(context, 4096, 1)


def test_an_array_that_the_device_does_not_reach_is_refused():
    """Begins before a part that it reaches, between two, or ends behind one: nothing of it is launched."""
    made = device_context()
    memory = np.zeros(96, np.float32)
    at = memory.ctypes.data
    _native.add_memory(made, at + 256, 64)
    _native.add_memory(made, at + 96, 32)
    _native.add_memory(made, at + 64, 32)  # with the part behind it one
    for first, count in ((0, 16), (12, 8), (28, 8), (32, 16), (60, 8), (80, 16)):
        with pytest.raises(ValueError, match="add: x is not in the device's memory"):
            _native.add(made, memory[first:first + count], memory[16:16 + count])
    with pytest.raises(ValueError, match="add: y is not in the device's memory"):
        _native.add(made, memory[16:32], memory[:16])


SCRATCH = np.zeros(cpu.scratch_bytes(1), np.uint8)
FROZEN = SCRATCH[:0].copy()
FROZEN.flags.writeable = False
HUGE = 10**400
# A function, the arguments that it takes ("context": a context, "device": one on a device), the place of the wrong one
# and the values it can have.
WRONG = [
    ("context", [1, None, 0, SCRATCH], 0, ["3", None, 1.5, 0, -1, HUGE]),
    ("context", [1, None, 0, SCRATCH], 1, [3, b"avx2", "\ud800", "scalar\0"]),
    ("context", [1, None, 0, SCRATCH], 2, ["fast", None, 0.5, -1, 3, HUGE]),
    ("context", [1, None, 0, SCRATCH], 3, [None, 3, "scratch", FROZEN, np.zeros((9, 9), np.uint8)[:, ::2]]),
    ("context_isa", ["context"], 0, [None, 3, "context"]),
    ("context_products", ["context"], 0, [None, 3, "context"]),
    ("set_precision", ["context", 0], 0, [None, 3, "context"]),
    ("set_precision", ["context", 0], 1, ["fast", None, 0.5, -1, 3, HUGE]),
    ("set_threads", ["context", 1], 0, [None, 3, "context"]),
    ("set_threads", ["context", 1], 1, ["3", None, 1.5, HUGE]),
    ("register_loop", ["context", False, 10], 0, [None, 3, "context"]),
    ("register_loop", ["context", False, 10], 1, ["x", None, 0.5, 2, HUGE]),
    ("register_loop", ["context", False, 10], 2, ["3", None, 1.5, -1, HUGE]),
    ("device_context", [1, 1, 1, 0, 9, 0, SCRATCH], 0, ["3", None, 0.5, 0, -1, HUGE]),
    ("device_context", [1, 1, 1, 0, 9, 0, SCRATCH], 1, ["3", None, 0.5, 0, -1, HUGE]),
    ("device_context", [1, 1, 1, 0, 9, 0, SCRATCH], 2, ["3", None, 0.5, 0, -1, HUGE]),
    ("device_context", [1, 1, 1, 0, 9, 0, SCRATCH], 3, ["3", None, 0.5, -1, HUGE]),
    ("device_context", [1, 1, 1, 0, 9, 0, SCRATCH], 4, ["3", None, 0.5, -1, HUGE]),
    ("device_context", [1, 1, 1, 0, 9, 0, SCRATCH], 5, ["fast", None, 0.5, -1, 3, HUGE]),
    ("device_context", [1, 1, 1, 0, 9, 0, SCRATCH], 6, [None, 3, "scratch", FROZEN, np.zeros((9, 9), "u1")[:, ::2]]),
    ("synchronize", ["context"], 0, [None, 3, "context"]),
    ("add_memory", ["device", 4096, 1], 0, [None, 3, "context"]),
    ("add_memory", ["device", 4096, 1], 1, ["3", None, 0.5, 0, -1, HUGE]),
    ("add_memory", ["device", 4096, 1], 2, ["3", None, 0.5, 0, -1, 2**63 - 1, HUGE]),
    ("scratch_bytes", [1], 0, ["3", None, 1.5, HUGE]),
    ("tape_begin", ["context", "tape", 1], 0, [None, 3, "context"]),
    ("tape_begin", ["context", "tape", 1], 1, [None, 3, "context"]),
    ("tape_begin", ["context", "tape", 1], 2, ["3", None, 1.5, 0, -1, HUGE]),
    ("tape_run", ["context", "tape", 1], 0, [None, 3, "context"]),
    ("tape_run", ["context", "tape", 1], 1, [None, 3, "context"]),
    ("tape_run", ["context", "tape", 1], 2, ["3", None, 1.5, 0, -1, HUGE]),
]


@pytest.mark.parametrize(("name", "usual", "place", "values"), WRONG)
def test_functions_of_contexts_refuse(context, name, usual, place, values):
    function = getattr(_native, name)
    contexts = {"context": context, "device": device_context(), "tape": _native.tape()}
    right = [contexts[value] if isinstance(value, str) else value for value in usual]
    assert not isinstance(function(*right), BaseException)
    if name == "tape_begin":
        _native.tape_end(context, False)
    for value in values:
        with pytest.raises((TypeError, ValueError)):
            function(*right[:place], value, *right[place + 1:])


def test_sizes_are_those_of_the_kernels_and_no_function_is_left_out():
    assert (HEAD_STATE, MOMENTS, MOMENT_BYTES) == (_native.HEAD_STATE, _native.MOMENTS, _native.MOMENT_BYTES)
    assert (SAMPLE_STATE, CACHE) == (_native.SAMPLE_STATE, _native.CACHE)
    others = {"cpu_features", "kernel_sets", "tape", "tape_end"}  # take nothing; test_tape.py has the last
    functions = {name for name in dir(_native) if callable(getattr(_native, name)) and not name.startswith("_")}
    assert functions - set(OPS) - others == {name for name, *_ in WRONG}


def test_scratch_bytes_says_what_it_wants():
    with pytest.raises(TypeError, match="scratch_bytes: threads must be a whole number, not str"):
        cpu.scratch_bytes("3")
    with pytest.raises(ValueError, match="threads must be 1 to 1024, not 1025"):
        cpu.scratch_bytes(1025)
