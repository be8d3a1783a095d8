"""The inner loops of the ARM rows as llvm-mca sees them: cycles, operations a cycle, percent of the core's peak.

    python tests/arm/cycles.py [--native native] [--cc aarch64-linux-gnu-gcc] [--mca llvm-mca-19] [--show] [--json]

Compiles native/isa/ROW.c with the flags of CMakeLists.txt and isas.def, takes the tiles' loop with the most
multiply-accumulates of the row's kind and no loop inside, and feeds it to llvm-mca. What llvm-mca cannot see: caches,
prefetch, how the loop is fetched, what an outer loop adds. Needs Debian's gcc-aarch64-linux-gnu and llvm-19: from 17 on
it has a model of the A76's pipeline, under the name of its server version, the Neoverse N1; under cortex-a76 it still
has the A57's.

The peak is what a loop of independent multiply-accumulates reaches by the models' throughputs, which come from Arm's
Software Optimization Guides:
    Cortex-A72 (LLVM uses the A57's model): one 128-bit FMA a cycle, 8 FLOP. It has no sdot.
    Cortex-A76 (Neoverse N1's model): an FMA or sdot a cycle on each of V0 and V1, 16 FLOP, 64 OP.
    Neoverse N2: an smmla a cycle on each of V0 and V1, 128 OP.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

FMA = r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\["
DOT = r"sdot\s+v\d+\.4s"
MATRIX = r"smmla\s+v\d+\.4s"


@dataclass(frozen=True)
class Case:
    row: str
    core: str
    model: str  # llvm-mca's -mcpu
    instruction: str  # a regular expression
    work: int  # FLOP or OP in one such instruction
    peak: int  # FLOP or OP a cycle


CASES = (
    Case("neon", "cortex-a72", "cortex-a72", FMA, 8, 8),
    Case("neon", "cortex-a76", "neoverse-n1", FMA, 8, 16),
    Case("dotprod", "cortex-a76", "neoverse-n1", DOT, 32, 64),
    Case("i8mm", "neoverse-n2", "neoverse-n2", MATRIX, 64, 128),
)


@dataclass(frozen=True)
class Result:
    row: str
    core: str
    function: str
    instructions: int
    products: int  # multiply-accumulate instructions
    loads: int
    spills: int  # instructions that touch the stack
    moves: int  # register to register
    cycles: float
    work_per_cycle: float
    peak: int
    percent: float


def flags(native: Path, row: str) -> list[str]:
    """What CMake compiles a row with in a release."""
    cmake = (native / "CMakeLists.txt").read_text()
    isas = (native / "isas.def").read_text()
    found = (re.search(r'CMAKE_C_FLAGS_RELEASE "([^"]*)"', cmake), re.search(r"add_compile_options\((-ff[^)]*)", cmake),
             re.search(rf'ISA\(ARM, {row}, "([^"]*)"\)', isas))
    return ["-std=gnu11", "-fPIC", "-fvisibility=hidden", *" ".join(m[1] for m in found if m).split()]


def assembly(cc: str, native: Path, row: str) -> list[str]:
    command = [cc, *flags(native, row), "-S", "-o", "-", str(native / "isa" / f"{row}.c")]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    lines = (re.sub(r"\s+", " ", line.split("//")[0].strip()) for line in text.splitlines())
    return [line for line in lines if line and (not line.startswith(".") or line.endswith(":"))]


def innermost_loops(lines: list[str]) -> list[tuple[str, list[str]]]:
    """(function, body) of every label that a later branch of the same function goes back to, with no other inside."""
    loops: list[tuple[str, list[str]]] = []
    function = ""
    labels = dict[str, int]()
    last = 0
    for i, line in enumerate(lines):
        if line.endswith(":"):
            if line.startswith("."):
                labels[line[:-1]] = i
            else:
                function = line[:-1]
                labels = {}
        elif (branch := re.match(r"(?:b|b\.?[a-z]{2}|cbn?z|tbn?z) (?:.*, )?(\.L\w+)$", line)) and branch[1] in labels:
            begin = labels[branch[1]]
            if begin >= last:
                loops.append((function, lines[begin + 1:i + 1]))
            last = i
    return loops


def hot_loop(lines: list[str], instruction: str) -> tuple[str, list[str]]:
    def rank(loop: tuple[str, list[str]]) -> tuple[int, int]:
        return sum(bool(re.match(instruction, line)) for line in loop[1]), -len(loop[1])
    return max((loop for loop in innermost_loops(lines) if loop[0].startswith(("tile_", "int8_"))), key=rank)


def cycles(mca: str, model: str, body: list[str], iterations: int = 1000) -> float:
    body = [line for line in body if not line.endswith(":")]
    command = [mca, "-mtriple=aarch64", f"-mcpu={model}", "-mattr=+dotprod,+i8mm", f"-iterations={iterations}",
               "-instruction-info=0", "-resource-pressure=0"]
    text = subprocess.run(command, input="\n".join(body), check=True, stdout=subprocess.PIPE, text=True).stdout
    found = re.search(r"Total Cycles:\s+(\d+)", text)
    assert found, text
    return int(found[1]) / iterations


def measure(case: Case, lines: list[str], mca: str) -> Result:
    function, body = hot_loop(lines, case.instruction)
    products = sum(bool(re.match(case.instruction, line)) for line in body)
    taken = cycles(mca, case.model, body)
    rate = products * case.work / taken
    return Result(case.row, case.core, function, sum(not line.endswith(":") for line in body), products,
                  sum(line.startswith("ld") for line in body), sum("[sp" in line for line in body),
                  sum(bool(re.match(r"f?mov ", line)) for line in body), taken, rate, case.peak, 100 * rate / case.peak)


def find_mca() -> str | None:
    """The newest that knows the Neoverse N1."""
    return next((name for v in range(30, 16, -1) if shutil.which(name := f"llvm-mca-{v}")), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--native", type=Path, default=Path(__file__).parents[2] / "native")
    parser.add_argument("--cc", default="aarch64-linux-gnu-gcc")
    parser.add_argument("--mca", default=find_mca())
    parser.add_argument("--show", action="store_true", help="print the loops too")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.mca or not shutil.which(args.cc):
        print(f"skipped: {args.cc} or llvm-mca is missing (apt install gcc-aarch64-linux-gnu llvm-19)")
        return
    sources = {row: assembly(args.cc, args.native, row) for row in dict.fromkeys(case.row for case in CASES)}
    results = [measure(case, sources[case.row], args.mca) for case in CASES]
    if args.json:
        print(json.dumps([asdict(r) for r in results], indent=2))
        return
    print(f"{'row':8} {'core':11} {'function':10} {'instr':>5} {'mac':>4} {'load':>4} {'stack':>5} {'mov':>4} "
          f"{'cycles':>7} {'op/cycle':>8} {'peak':>5}")
    for r in results:
        print(f"{r.row:8} {r.core:11} {r.function:10} {r.instructions:5} {r.products:4} {r.loads:4} {r.spills:5} "
              f"{r.moves:4} {r.cycles:7.1f} {r.work_per_cycle:8.1f} {r.percent:4.0f}% of {r.peak}")
    if args.show:
        for case in CASES:
            print(f"\n{case.row}, {case.core}:", *hot_loop(sources[case.row], case.instruction)[1], sep="\n    ")


if __name__ == "__main__":
    main()
