"""Faults put into the GPU's kernels on purpose, each of which the emulated harness must find.

    python tests/cuda/planted.py BUILD

BUILD: a folder in which CMake has built et_check with ET_EMULATE, without faults. A unit with a fault is compiled as
its own was, and linked with the other objects. Exits with 1 where a fault is not found, or where nothing was planted.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

NATIVE = Path(__file__).parents[2] / "native"
SECONDS = 600  # that the harness may take; a fault must not make it hang


class Fault(NamedTuple):
    """`instead` takes the place of `text` in a file of native/cuda that `unit` includes; `subject` must find it."""

    name: str
    file: str
    text: str
    instead: str
    unit: str
    subject: str


FAULTS = (
    Fault("a barrier is missing before shared memory is read", "block.cuh",
          "    __syncthreads();\n    x = parts[0];", "    x = parts[0];", "plain", "ops"),
    Fault("a barrier is missing before shared memory is used again", "block.cuh",
          "    __syncthreads(); /* `parts` may be in use by those before */\n", "", "plain", "ops"),
    Fault("a lane takes another lane's row", "attention_bf16.cuh",
          "lane_row() { return this_lane() / 4; }", "lane_row() { return this_lane() / 8; }", "attention",
          "attention"),
    Fault("one value too many", "rope.cuh", "if (i >= a.n)", "if (i > a.n)", "plain", "ops"),
)


def compile_command(build: Path, unit: str) -> tuple[list[str], Path]:
    """How CMake compiles a unit, and the object that it makes."""
    rules = (build / "CMakeFiles" / "et_emulated.dir" / "flags.make").read_text()
    flags = [word for name in ("DEFINES", "INCLUDES", "FLAGS") for word in shlex.split(
        re.findall(rf"^CXX_{name} = (.*)$", rules, re.MULTILINE)[0])]
    return ["c++", *flags, "-xc++", "-c"], build / "CMakeFiles" / "et_emulated.dir" / "cuda" / f"{unit}.cu.o"


def link_command(build: Path) -> list[str]:
    return shlex.split((build / "CMakeFiles" / "et_check.dir" / "link.txt").read_text())


def is_found(fault: Fault, build: Path) -> bool:
    """Plants it in a copy of the sources, and asks the harness."""
    with tempfile.TemporaryDirectory() as folder:
        native = Path(folder) / "native"
        shutil.copytree(NATIVE, native)
        file = native / "cuda" / fault.file
        text = file.read_text()
        if text.count(fault.text) != 1:
            sys.exit(f"{fault.file} has {text.count(fault.text)} times what is to be replaced: {fault.text!r}")
        file.write_text(text.replace(fault.text, fault.instead))
        compiler, whole = compile_command(build, fault.unit)
        planted = Path(folder) / "planted.o"
        subprocess.run([*compiler, str(native / "cuda" / f"{fault.unit}.cu"), "-o", str(planted)], check=True)
        harness = Path(folder) / "et_check"
        link = [str(planted) if (build / word).resolve() == whole.resolve() else word for word in link_command(build)]
        link[link.index("-o") + 1] = str(harness)
        subprocess.run(link, cwd=build, check=True)
        return _fails([str(harness), "cuda", fault.subject])


def _fails(command: list[str]) -> bool:
    """Whether the harness ends with a failure; at the first one that it says it is ended."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        too_long = threading.Timer(SECONDS, running.kill)
        too_long.start()
        assert running.stdout
        fails = any(line.startswith("FAILED") for line in running.stdout)
        if fails:
            running.kill()
        code = running.wait()
        if not too_long.is_alive() and not fails:
            sys.exit(f"{command[-1]} took more than {SECONDS} seconds")
        too_long.cancel()
    return fails or code != 0


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    build = Path(sys.argv[1]).resolve()
    missed = 0
    for fault in FAULTS:
        found = is_found(fault, build)
        print(f"{fault.name} ({fault.file}): {'found' if found else 'NOT FOUND'}", flush=True)
        missed += not found
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
