"""The GPU's kernels through both of NVIDIA's compilers, for a Jetson Orin and a server's card; no card is needed.

    python tests/cuda/compile.py [--formats Q4_1 Q4_K ...] [--archs sm_87 sm_90]

Each unit of native/cuda/kernels.def is compiled by nvcc and by NVRTC, as `edgetune` does it on a card, weight kernels
once a format. Prints registers and bytes of spilled registers by kernel. Exits with 1 at a warning, a spill, or more
registers than a block of ET_BLOCK threads can have. Needs the package nvidia-cuda-nvcc and the extra cuda; without them
it says so, and compiles nothing.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from edgetune.backends import _native, cuda_driver
from edgetune.backends.native import FORMATS
from edgetune.errors import DeviceError

MOST_REGISTERS = 65536 // 256  # of an SM, over the threads of one block
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
SPILLED = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


class Kernel(NamedTuple):
    """A compiled kernel. spilled: bytes that do not fit the registers, stored and loaded."""

    name: str
    arch: str
    registers: int
    spilled: int


def units() -> dict[str, bool]:
    """The units, and whether each is compiled once a format."""
    return {unit: for_weights for unit, _, for_weights in _native.KERNELS}


def by_nvcc(nvcc: Path, unit: str, arch: str, fmt: str) -> tuple[bool, str]:
    """(whether it was compiled, what the compiler said); fmt: the only weight format, or "" """
    with tempfile.TemporaryDirectory() as folder:
        command = [str(nvcc), "-std=c++17", f"-arch={arch}", "-cubin", "-o", f"{folder}/unit.cubin",
                   str(cuda_driver.sources() / "cuda" / f"{unit}.cu"), "-Xptxas", "-v",
                   *([f"-DET_ONLY={fmt}"] if fmt else [])]
        done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


def by_nvrtc(unit: str, arch: str, fmt: str) -> tuple[bool, str]:
    """The same, as edgetune does it on a card."""
    try:
        return True, cuda_driver.compile_unit(unit, fmt, arch, ptxas_options="-v")[1]
    except DeviceError as error:
        return False, str(error)


def kernels_of(log: str) -> list[Kernel]:
    """What ptxas says of each entry function."""
    found = []
    name = arch = ""
    spilled = 0
    for line in log.splitlines():
        if match := ENTRY.search(line):
            name, arch = match.groups()
        elif match := SPILLED.search(line):
            spilled = int(match[1]) + int(match[2])
        elif match := USED.search(line):
            found.append(Kernel(name, arch, int(match[1]), spilled))
    return found


def checked(compiler: str, unit: str, arch: str, compiled: tuple[bool, str]) -> tuple[list[Kernel], list[str]]:
    """The kernels, and what is wrong with them."""
    done, log = compiled
    if not done:
        return [], [f"{compiler}, {unit}, {arch}: does not compile:\n{log}"]
    kernels = kernels_of(log)
    wrong = [f"{compiler}, {unit}, {arch}: {line.strip()}" for line in log.splitlines() if "warning" in line.lower()]
    for kernel in kernels:
        if kernel.spilled:
            wrong.append(f"{compiler}, {arch}: {kernel.name} spills {kernel.spilled} bytes")
        if kernel.registers > MOST_REGISTERS:
            wrong.append(f"{compiler}, {arch}: {kernel.name} has {kernel.registers} registers")
    if not kernels:
        wrong.append(f"{compiler}, {unit}, {arch}: no kernel was compiled")
    return kernels, wrong


def nvcc_path() -> Path | None:
    """nvcc of the package nvidia-cuda-nvcc."""
    spec = find_spec("nvidia")
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders for path in sorted(Path(folder).glob("*/bin/nvcc"))), None)


def has_nvrtc() -> bool:
    try:
        return bool(cuda_driver.find_nvrtc())
    except DeviceError:
        return False


def rows_of(unit: str, fmt: str, archs: list[str], nvcc: Path) -> tuple[list[str], list[str]]:
    """The unit's lines of the table, and what is wrong."""
    lines = []
    wrong = []
    for compiler in ("nvcc", "NVRTC"):
        cells: dict[str, list[str]] = {}
        for arch in archs:
            compiled = by_nvcc(nvcc, unit, arch, fmt) if compiler == "nvcc" else by_nvrtc(unit, arch, fmt)
            kernels, problems = checked(compiler, unit, arch, compiled)
            wrong += problems
            for kernel in kernels:
                cells.setdefault(kernel.name, []).append(f"{kernel.registers}, {kernel.spilled}")
        lines += [f"| {name} | {compiler} | {' | '.join(found)} |" for name, found in sorted(cells.items())]
    return lines, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--archs", nargs="+", default=["sm_87", "sm_90"])
    args = parser.parse_args()
    nvcc = nvcc_path()
    if nvcc is None or not has_nvrtc():
        print("skipped: NVIDIA's compilers are missing (make install EXTRAS=cuda; pip install nvidia-cuda-nvcc)")
        return
    wrong: list[str] = []
    print("| kernel | compiler | " + " | ".join(f"{arch}: registers, spilled" for arch in args.archs) + " |")
    print("|---" * (2 + len(args.archs)) + "|")
    for unit, of_weights in units().items():
        for fmt in args.formats if of_weights else [""]:
            lines, problems = rows_of(unit, fmt, args.archs, nvcc)
            print("\n".join(lines), flush=True)
            wrong += problems
    print("\n" + ("\n".join(wrong) if wrong else "no warning, no spill"))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
