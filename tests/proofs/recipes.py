"""Small data sets trained as whoever follows the README does: `edgetune train` without an option.

    python tests/proofs/recipes.py [--only NAME ...] [--rows 20 60 ...] [--seeds 0,1,2] [--grid] [--memory 300M]
                                   [--out recipes.jsonl]

The data sets are the five of own_sets.py, of 60 rows each, the demonstration's, and Snips, which needs ../shared. The
first rows of each are trained with each seed; with the first seed also within --memory, and with --grid at each point
of a grid of rates, passes and batches, for the best that these rows can give. Held-out rows are then answered by
llama.cpp: freely, and where training derived a schema from its rows also held to it. Of each adapter it is said how
much more an unrelated text surprises it than the base. Results are added to --out, and what it already holds is not
measured again, so that the proof can run in pieces; the table shows all of it.

Exits with 1 unless the default has 80 % right by mean over its seeds, or at most 2 points less than the best point of a
measured grid; each training of 60 rows took 5 minutes at most, and those within --memory kept to it; exactly the sets
whose answers are JSON have a schema, and all answers held to it are valid, of which no fewer are right.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jsonschema_rs
from json_lines import read_lines, write_lines
from own_sets import SETS, OwnSet, Row
from peers.snips import SYSTEM
from proofs.compared import SHARED, Result, arguments, end, measure_missing

from edgetune.data.dataset import load_rows
from edgetune.demo import run as demo
from edgetune.errors import WORSE
from edgetune.evaluation.acceptance import wilson
from edgetune.evaluation.canary import FILE, drift
from edgetune.evaluation.judge import is_json
from edgetune.evaluation.served import GradedAnswer, exact_match
from edgetune.serving.llama import LlamaModel

RATES = (5e-4, 1e-3, 2e-3)
PASSES = {20: (8, 16), 60: (8, 16), 200: (8,), 400: (4,), 1000: (2,), 5000: (1,)}  # of the grid, by the number of rows
FEW = 100  # rows, up to which a grid has two batches
DEFAULT = "default"
RIGHT = 0.8  # of the held-out answers
POINTS = 0.02
MINUTES = 5
MAX_LENGTH = 512


@dataclass(frozen=True)
class Task:
    """sizes: numbers of rows that are trained on. own: whose judge says what is right, where exactness is too much."""

    name: str
    system: str
    train: Path
    heldout: Path
    sizes: Sequence[int] = (60,)
    asked: int = 100
    own: OwnSet | None = None

    def rows(self, size: int) -> list[Row]:
        return read_lines(self.train)[:size]

    @property
    def held_out(self) -> list[Row]:
        return read_lines(self.heldout)[:self.asked]

    def right(self, answer: GradedAnswer) -> bool:
        return self.own.right(answer.expected, answer.answer) if self.own else answer.correct


def tasks(shared: Path) -> dict[str, Task]:
    data = shared / "data"
    found = [Task(name, own.system, own.path("train"), own.path("heldout"), own=own) for name, own in SETS.items()]
    found += [Task("demo", demo.SYSTEM, demo.DATA / "home_train.jsonl", demo.DATA / "home_heldout.jsonl",
                   (20, 60, 200, 400)),
              Task("snips", SYSTEM, data / "snips_train.jsonl", data / "snips_dev.jsonl", (20, 60, 200, 1000, 5000))]
    return {task.name: task for task in found}


def trained(model: Path, rows: Path, system: str, out: Path, options: Sequence[str]) -> tuple[dict[str, Any], float]:
    """(run.json's content, seconds of the command). A process of its own, so that its peak of memory is its own."""
    command = [sys.executable, "-m", "edgetune", "train", str(model), str(rows), "-o", str(out), "--system", system,
               "--json", *options]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode not in (0, WORSE) or not (out / "run.json").is_file():
        sys.exit(f"{rows.name}: {done.stdout}{done.stderr}")
    return json.loads((out / "run.json").read_text()), seconds


def right_answers(model: Path, adapter: Path, own: OwnSet, *asked: list[Row]) -> list[int]:
    """Of each list of rows, how many are answered rightly by llama.cpp with the adapter."""
    with LlamaModel(model) as served:
        served.load_adapter(adapter, own.name)
        served.use(own.name)
        sets = [load_rows(rows, served.tokenizer, max_length=MAX_LENGTH, system=own.system) for rows in asked]
        answers = [exact_match(served, rows, system=own.system) for rows in sets]
    return [sum(own.right(answer.expected, answer.answer) for answer in given) for given in answers]


def measured(model: Path, task: Task, size: int, seed: int, options: list[str]) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "adapter"
        rows = write_lines(Path(folder) / "rows.jsonl", task.rows(size))
        record, seconds = trained(model, rows, task.system, out, ["--no-answers", *options, "--seed", str(seed)])
        schema = json.loads((out / "schema.json").read_text()) if (out / "schema.json").is_file() else None
        with LlamaModel(model) as served:
            served.load_adapter(out, task.name)
            served.use(task.name)
            asked = load_rows(task.held_out, served.tokenizer, max_length=MAX_LENGTH, system=task.system)
            free = exact_match(served, asked, system=task.system)
            grammar = served.grammar_of(task.name) if schema else ""
            held = exact_match(served, asked, system=task.system, grammar=grammar) if schema else []
            rise = drift(served, task.name, [FILE.read_text(encoding="utf-8")]).rise
    result = {"right": sum(map(task.right, free)), "of": len(free), "steps": record["steps"], "seconds": seconds,
              "peak_mib": record["peak_rss_mib"], "rise": rise, "verdict": record["verdict"]["sentence"],
              "schema": schema is not None, "json": all(is_json(answer.expected) for answer in free)}
    if schema:
        judge = jsonschema_rs.validator_for(schema)
        valid = [is_json(answer.answer) and judge.is_valid(json.loads(answer.answer)) for answer in held]
        result |= {"held_right": sum(map(task.right, held)), "held_valid": sum(valid)}
    return result


def variants(args: argparse.Namespace, size: int) -> Iterator[tuple[str, int, list[str]]]:
    """(name, seed, options) of each training."""
    yield from ((DEFAULT, seed, []) for seed in args.seeds)
    yield args.memory, args.seeds[0], ["--memory", args.memory]
    batches = (4, 8) if size < FEW else (8,)
    for rate, passes, batch in product(RATES, PASSES[size], batches) if args.grid else ():
        options = ["--lr", str(rate), "--epochs", str(passes), "--batch-size", str(batch), "--eval", "none"]
        yield f"lr {rate:g}, {passes} passes, batch {batch}", args.seeds[0], options


# ---- what the results say ----


def by_size(results: Sequence[Result]) -> dict[tuple[str, int], dict[str, list[Result]]]:
    """{(data set, rows): {variant: its trainings}}"""
    found: dict[tuple[str, int], dict[str, list[Result]]] = {}
    for result in results:
        found.setdefault((result["set"], result["rows"]), {}).setdefault(result["variant"], []).append(result)
    return found


def share(runs: Sequence[Result], what: str = "right") -> float:
    return float(sum(run[what] for run in runs) / sum(run["of"] for run in runs))


def show(results: Sequence[Result]) -> None:
    print("\n| data | rows | options | seeds | right | 95 % | held to a schema | unrelated text | steps | min | MiB |\n"
          + "|---" * 11 + "|")
    for (name, size), found in by_size(results).items():
        for variant, runs in sorted(found.items(), key=lambda item: (item[0].startswith("lr "), -share(item[1]))):
            low, high = wilson(sum(run["right"] for run in runs), sum(run["of"] for run in runs))
            held = f"{share(runs, 'held_right'):.1%}" if all(run["schema"] for run in runs) else ""
            print(f"| {name} | {size} | {variant} | {len(runs)} | {share(runs):.1%} | {low:.0%}-{high:.0%} | {held} | "
                  f"{sum(run['rise'] for run in runs) / len(runs):+.0%} | {max(run['steps'] for run in runs)} | "
                  f"{max(run['seconds'] for run in runs) / 60:.1f} | {max(run['peak_mib'] for run in runs):.0f} |")


def missed(results: Sequence[Result], memory: str) -> Iterator[str]:
    """What does not hold."""
    for (name, size), found in by_size(results).items():
        where = f"{name}, {size} rows"
        grid = [share(runs) for variant, runs in found.items() if variant.startswith("lr ")]
        enough = max(grid) - POINTS if grid else RIGHT if size == 60 else 0
        if DEFAULT in found and share(found[DEFAULT]) < min(enough, RIGHT):
            yield f"{where}: {share(found[DEFAULT]):.1%} right"
        if memory in found and max(run["peak_mib"] for run in found[memory]) > int(re.sub(r"\D", "", memory)):
            yield f"{where}: more than {memory}"
        for run in (run for runs in found.values() for run in runs):
            if size == 60 and run["seconds"] > 60 * MINUTES:
                yield f"{where}, {run['variant']}: more than {MINUTES} minutes"
            if run["schema"] != run["json"]:
                yield f"{where}: {'a' if run['schema'] else 'no'} schema was derived"
            if run["schema"] and run["held_valid"] < run["of"]:
                yield f"{where}: {run['held_valid']} of {run['of']} are valid"
            if run["schema"] and run["held_right"] < run["right"]:
                yield f"{where}: {run['held_right']} are right held to the schema, {run['right']} free"


def told(result: Result) -> str:
    return (f"{result['set']}, {result['rows']} rows, {result['variant']}, seed {result['seed']}: {result['right']} of "
            f"{result['of']} right, {result['steps']} steps, {result['seconds']:.0f} s")


def main() -> None:
    parser = arguments(__doc__, "recipes.jsonl", tasks(SHARED), SETS, seeds=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[60], help="sizes of what is trained on [60]")
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--memory", default="300M", metavar="MIB", help="such as 300M")
    args = parser.parse_args()
    chosen = {name: task for name, task in tasks(args.shared).items() if name in args.only}
    options = {(size, variant, seed): words for size in args.rows for variant, seed, words in variants(args, size)}
    cases = [{"set": name, "rows": size, "variant": variant, "seed": seed}
             for name, task in chosen.items() for size, variant, seed in options if size in task.sizes]
    results = measure_missing(args, cases, lambda set, rows, variant, seed: measured(
        args.model, chosen[set], rows, seed, options[rows, variant, seed]), told)
    show(results)
    end([*missed(results, args.memory)])


if __name__ == "__main__":
    main()
