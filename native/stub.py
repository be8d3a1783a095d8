"""Writes edgetune/backends/_native.pyi, which tells mypy the extension's functions: `python native/stub.py`.

The ops are read from binding_ops.def; binding.h has the words of a spec.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
STUB = HERE.parent / "edgetune" / "backends" / "_native.pyi"
WIDTH = 120

HEAD = '''"""The extension behind native.py, cpu.py and cuda.py. Written by native/stub.py from binding_ops.def."""

from typing import Any

from numpy.typing import NDArray

_Array = NDArray[Any]

class _Context: ...
class _Tape: ...

FORMATS: dict[str, tuple[int, int, int, str, tuple[int, ...]]]
CACHE: int
HEAD_STATE: int
SAMPLE_STATE: int
MOMENTS: int
MOMENT_BYTES: int
KERNELS: tuple[tuple[str, str, bool], ...]
EMULATED: tuple[int, ...]

def context(threads: int, isa: str | None, precision: int, scratch: _Array, /) -> _Context | int: ...
def device_context(
    find: int, launch: int, query: int, stream: int, patience: int, precision: int, scratch: _Array, /,
) -> _Context | int: ...
def add_memory(context: _Context, address: int, size: int, /) -> None: ...
def synchronize(context: _Context, /) -> int: ...
def context_isa(context: _Context, /) -> str: ...
def context_products(context: _Context, /) -> tuple[str, str]: ...
def set_precision(context: _Context, precision: int, /) -> None: ...
def set_threads(context: _Context, threads: int, /) -> int: ...
def register_loop(context: _Context, backward: bool, n: int, /) -> float: ...
def scratch_bytes(threads: int, /) -> int: ...
def tape() -> _Tape: ...
def tape_begin(context: _Context, tape: _Tape, tokens: int, /) -> None: ...
def tape_end(context: _Context, whole: bool, /) -> None: ...
def tape_run(context: _Context, tape: _Tape, tokens: int, /) -> int | None: ...
def cpu_features() -> str: ...
def kernel_sets() -> list[tuple[str, bool]]: ...

# The ops return et.h's codes.
'''

TYPES = {".": "float", "#": "int", "$": "int", "?": "_Array | None", "/": "_Array | None", "+": "_Array | None"}


class Argument(NamedTuple):
    """A word of a spec; flat: any shape of that many values in all."""

    name: str
    kind: str
    flat: bool
    letters: str


def read_ops(path: Path = HERE / "binding_ops.def") -> dict[str, list[Argument]]:
    """The ops and their arguments after the context. A weight's second argument, its format, is not among them."""
    ops = {}
    for name, spec in re.findall(r'^OP\((\w+),\s*"([^"]*)"', path.read_text(), re.MULTILINE):
        words = (re.fullmatch(r"(\w+)([^\w*])(\*?)(\w*)", word) for word in spec.split())
        ops[name] = [Argument(w[1], w[2], bool(w[3]), w[4]) for w in words if w]
    return ops


def parameters(arguments: list[Argument]) -> list[str]:
    """As they stand in a function's head."""
    heads = ["context: _Context"]
    for argument in arguments:
        heads.append(f"{argument.name}: {TYPES.get(argument.kind, '_Array')}")
        if argument.kind == "%":
            heads.append("format: int")
    return [*heads, "/"]


def function(name: str, arguments: list[Argument]) -> str:
    heads = parameters(arguments)
    line = f"def {name}({', '.join(heads)}) -> int: ..."
    if len(line) <= WIDTH:
        return line
    rows = [""]
    for head in heads:
        if len(rows[-1]) + len(head) + 6 > WIDTH:
            rows.append("")
        rows[-1] += f" {head}," if rows[-1] else f"    {head},"
    return "\n".join([f"def {name}(", *rows, ") -> int: ..."])


def stub() -> str:
    return HEAD + "\n".join(function(name, arguments) for name, arguments in read_ops().items()) + "\n"


if __name__ == "__main__":
    STUB.write_text(stub())
