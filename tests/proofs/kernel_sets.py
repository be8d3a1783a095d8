"""The kernel sets beside the peaks of their cores, as tables for the docs.

    python tests/proofs/kernel_sets.py here [--model SmolLM2.gguf] [--rounds 3] [--steps 3]
    python tests/proofs/kernel_sets.py arm [--cc aarch64-linux-gnu-gcc] [--mca llvm-mca]

here   each set that this CPU runs, by EDGETUNE_ISA: `lab bench train` at 4 x 256 tokens and 1 x 64, in turn; the
       share of a step that its FLOP take at the peak of a register loop of the same set, best of the rounds.
arm    the inner loops of aarch64's sets, compiled, in llvm-mca's model of a core: operations a cycle, as if all were in
       the first cache, beside a loop of the same multiplications alone. No clock is measured. LLVM has no model of
       Cortex-A76; Neoverse N1's pipelines are the same, since LLVM 15. Older ones take A57's for it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

NATIVE = Path(__file__).parents[2] / "native"
FLAGS = ["-O3", "-DNDEBUG", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
SHAPES = ((4, 256), (1, 64))  # rows, tokens
CORES = {"cortex-a72": ("Cortex-A72 (Pi 4)", ("neon",)),
         "neoverse-n1": ("Cortex-A76 (Pi 5)", ("neon", "dotprod")),
         "neoverse-v1": ("Neoverse V1", ("i8mm",))}
PRODUCTS = {"fmla": 8, "sdot": 32, "smmla": 64}  # operations of a vector of 128 bits, two for a product and its sum
LOOPS = {"tile_3": ("fmla", "product of packed floats"), "direct_3": ("fmla", "product of floats as they lie"),
         "half_3": ("fmla", "the same, one side in bf16"), "delta_passes": ("fmla", "delta rule"),
         "ssm_take_head": ("fmla", "Mamba 2"), "int8_3_0": ("dot", "product of bytes"),
         "int8_3_1": ("dot", "product of bytes with minima")}
PASSES = 200  # of a loop, that llvm-mca runs


# ---- this CPU ----


def bench(model: Path, isa: str, precision: str, batch: int, length: int, steps: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgetune", "lab", "bench", "train", str(model), "--batch-size", str(batch),
               "--length", str(length), "--precision", precision, "--steps", str(steps), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, "EDGETUNE_ISA": isa})
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def here(args: argparse.Namespace) -> None:
    from edgetune.backends import cpu
    sets = [name for name in cpu.isa_names() if cpu.usable(name) and name != "scalar"]
    best: dict[tuple[str, str], dict[tuple[int, int], dict[str, Any]]] = {}
    for _ in range(args.rounds):
        for isa in sets:
            for precision in ("fast", "int8"):
                for shape in SHAPES:
                    found = bench(args.model, isa, precision, *shape, args.steps)
                    held = best.setdefault((isa, precision), {})
                    held[shape] = max(held.get(shape, found), found, key=lambda run: run["mfu"])
    print("| set | precision | products | GFLOP/s of the loop, forward, backward | 4 x 256: tokens/s | of the loop | "
          "1 x 64: tokens/s | of the loop |\n|---|---|---|---|---|---|---|---|")
    for (isa, precision), held in best.items():
        large, small = (held[shape] for shape in SHAPES)
        print(f"| {isa} | {precision} | {large['products']} | {large['peak_forward_gflops']:.0f}, "
              f"{large['peak_backward_gflops']:.0f} | {large['tokens_per_s']:.0f} | {large['mfu']:.0%} | "
              f"{small['tokens_per_s']:.0f} | {small['mfu']:.0%} |")


# ---- ARM ----


def isa_flags(name: str) -> list[str]:
    text = (NATIVE / "isas.def").read_text(encoding="utf-8")
    found = re.search(rf'ISA\(ARM, {name}, "(.*)"\)', text)
    assert found
    return found[1].split()


def assembly(cc: str, isa: str, folder: Path) -> list[str]:
    target = folder / f"{isa}.s"
    subprocess.run([cc, *FLAGS, *isa_flags(isa), "-S", str(NATIVE / "isa" / f"{isa}.c"), "-o", str(target)], check=True)
    return target.read_text(encoding="utf-8").splitlines()


def inner_loops(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(function, instructions) of each loop without a label inside, its branch included."""
    begins: dict[str, int] = {}
    function = ""
    for number, line in enumerate(lines):
        if label := re.match(r"([A-Za-z_.][\w.$]*):", line):
            begins[label[1]] = number
            function = function if label[1].startswith(".") else label[1]
        branch = re.match(r"\s+(?:b\.?[a-z]{2}|cbn?z|tbn?z)\s+(?:.*,\s*)?(\.L\w+)$", line)
        if branch and branch[1] in begins:
            body = lines[begins[branch[1]] + 1:number + 1]
            if not any(re.match(r"\.L\w+:", text) for text in body):
                yield function, [text for text in body if re.match(r"\s+[a-z]", text)]


def count(loop: list[str], name: str) -> int:
    return sum(bool(re.match(rf"\s+{name}\s+v", line)) for line in loop)


def cycles(mca: str, core: str, loop: list[str]) -> float:
    """The cycles of a pass, by llvm-mca."""
    extensions = "+dotprod,+i8mm" if core != "cortex-a72" else ""
    command = [mca, "-mtriple=aarch64", f"-mcpu={core}", f"-mattr={extensions}", f"-iterations={PASSES}"]
    done = subprocess.run(command, check=True, input="\n".join(loop), text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL)
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert found
    return int(found[1]) / PASSES


def register_loop(product: str) -> list[str]:
    """Independent multiplications and nothing else."""
    lanes = {"fmla": ("4s", "4s"), "sdot": ("4s", "16b"), "smmla": ("4s", "16b")}[product]
    return [f"\t{product} v{n}.{lanes[0]}, v30.{lanes[1]}, v31.{lanes[1]}" for n in range(24)]


def arm(args: argparse.Namespace) -> None:
    version = subprocess.run([args.mca, "--version"], check=True, text=True, stdout=subprocess.PIPE).stdout
    print(re.search(r"LLVM version \S+", version)[0])  # type: ignore[index]
    print("| core | set | loop | multiplications | cycles a pass | operations a cycle | of the register loop |\n"
          "|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for core, (name, sets) in CORES.items():
            for isa in sets:
                loops = list(inner_loops(assembly(args.cc, isa, Path(folder))))
                for function, (kind, what) in LOOPS.items():
                    show(args.mca, core, f"{name} | {isa} | {what}", kind,
                         [body for found, body in loops if found == function])


def show(mca: str, core: str, row: str, kind: str, loops: list[list[str]]) -> None:
    """Prints the row of a function's loop with the most multiplications; nothing where it has none of this kind."""
    products = ["fmla"] if kind == "fmla" else ["sdot", "smmla"]
    most, product, loop = max(((count(body, name), name, body) for body in loops for name in products),
                              default=(0, "", []))
    if not most:
        return
    taken = cycles(mca, core, loop)
    rate = most * PRODUCTS[product] / taken
    peak = 24 * PRODUCTS[product] / cycles(mca, core, register_loop(product))
    print(f"| {row} | {most} {product} | {taken:.1f} | {rate:.1f} | {rate / peak:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("here", "arm"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--cc", default="aarch64-linux-gnu-gcc")
    parser.add_argument("--mca", default="llvm-mca")
    args = parser.parse_args()
    if args.which == "arm":
        arm(args)
        return
    from peers.snips import model_path
    args.model = args.model or model_path()
    here(args)


if __name__ == "__main__":
    main()
