"""Rates, strengths and lengths of methods that learn from pairs, on two tasks: what their defaults are to be.

    python tests/proofs/preferences.py [--only dpo kto orpo] [--tasks intents commands] [--pairs 256] [--held-out 150]
                                       [--rates 5e-5,1e-4,2e-4,5e-4,1e-3] [--betas 0.03,0.1,0.3] [--epochs 1,2]
                                       [--seeds 0] [--out FILE]

A pair is a question, its right answer and a wrong one: of intents the name of another intent of Snips, of commands the
JSON of the demonstration with one value of another row's. All rates are tried at the method's default beta and one
epoch; then the other betas and lengths at the best rate, which is the one with most held-out pairs in the right order
among those that cost other text at most COST in perplexity. A plain baseline learns the right answers alone (sft). Of
each adapter: held-out pairs in the right order, likeliest answers that are right, perplexity and KL on WikiText.
Results are added to --out, and what it already holds is not measured again. Needs the rows of make data.

Exits with 1 unless each method's default rate is the best of its row on one task at least.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import read_lines, write_lines
from peers.snips import SYSTEM as SNIPS
from proofs.compared import Result, Row, answered, arguments, edgetune, end_with, folder_of, forgotten, measure_missing

from edgetune.adapters.store import FILE
from edgetune.demo.run import DATA, SYSTEM
from edgetune.evaluation.judge import same
from edgetune.objectives.base import objectives

METHODS = ("dpo", "kto", "orpo")
SFT = "sft"
COST = 0.03  # of perplexity: what a daemon's gate allows, roughly
MOST_TOKENS = 48


# ---- rows ------------------------------------------------------------------------------------------------------------


def intents(shared: Path) -> list[Row]:
    rows = read_lines(shared / "data" / "snips_train.jsonl")[:2000]
    named = [(row["prompt"], json.loads(row["completion"])["intent"]) for row in rows]
    every = sorted({intent for _, intent in named})
    rng = random.Random(0)
    return [{"prompt": prompt, "chosen": intent, "rejected": rng.choice([other for other in every if other != intent])}
            for prompt, intent in named]


def commands(_shared: Path) -> list[Row]:
    rows = read_lines(DATA / "home_train.jsonl") + read_lines(DATA / "home_heldout.jsonl")
    rng = random.Random(0)
    return [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": changed(row, rows, rng)} for row in rows]


def changed(row: Row, rows: Sequence[Row], rng: random.Random) -> str:
    """The answer with one value of another row's."""
    right = json.loads(row["completion"])
    while True:
        other = json.loads(rng.choice(rows)["completion"])
        names = [name for name in right if name in other and other[name] != right[name]]
        if names:
            name = rng.choice(names)
            return json.dumps({**right, name: other[name]}, separators=(",", ":"))


TASKS = {"intents": (intents, SNIPS), "commands": (commands, SYSTEM)}


# ---- one training ----------------------------------------------------------------------------------------------------


def measured(args: argparse.Namespace, task: str, method: str, rate: float, beta: float, epochs: int,
             seed: int) -> Result:
    read, system = TASKS[task]
    rows = read(args.shared)
    folder = folder_of(args)
    held = rows[-args.held_out:]
    pairs = write_lines(folder / f"{task}-held.jsonl", held)
    out = folder / f"{task}-{method}-{rate:g}-{beta:g}-{epochs}-{seed}"
    if not (out / FILE).is_file():
        learned = write_lines(folder / f"{task}.jsonl", [each for row in rows[:args.pairs]
                                                         for each in as_learned(row, method)])
        own = [] if method == SFT else ["--beta", beta]
        edgetune("train", args.model, learned, "-o", out, "--method", method, *own, "--lr", rate, "--epochs", epochs,
                 "--batch-size", 8, "--seed", seed, "--system", system, "--eval", "none", "--no-answers", "--no-govern",
                 "--json")
    order = edgetune("eval", args.model, pairs, "--adapter", out, "--system", system, "--json")
    said = answered(args.model, out / "answers.jsonl", out, held, MOST_TOKENS, "--system", system)
    right = [same(row["chosen"], answer["text"]) for row, answer in zip(held, read_lines(said), strict=True)]
    return {"accuracy": order["preference_accuracy"], "margin": order["margin"], "right": sum(right) / len(right),
            **forgotten(args.model, out, args.shared / "data")}


def as_learned(row: Row, method: str) -> list[Row]:
    """The rows that a method makes of a pair."""
    chosen, rejected = ({"prompt": row["prompt"], "completion": row[name]} for name in ("chosen", "rejected"))
    if method == "kto":
        return [{**chosen, "label": True}, {**rejected, "label": False}]
    return [chosen] if method == SFT else [row]


def told(result: Result) -> str:
    return (f"{result['task']:9} {result['method']:5} lr {result['rate']:<7g} beta {result['beta']:<5g} "
            f"{result['epochs']} epochs: pairs {result['accuracy']:6.1%}  right {result['right']:6.1%}  "
            f"KL {result['kl']:.3f}  perplexity {result['rise']:+.1%}")


def best(results: Sequence[Result]) -> Result:
    """Of runs that cost little elsewhere, if there are any, the one with most pairs in the right order."""
    cheap = [run for run in results if run["rise"] <= COST] or results
    return max(cheap, key=lambda run: (run["accuracy"], run["right"], -run["kl"]))


def main() -> None:
    def floats(text: str) -> list[float]:
        return [float(part) for part in text.split(",")]

    parser = arguments(__doc__, "preferences.jsonl", METHODS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=150)
    parser.add_argument("--rates", type=floats, default=[5e-5, 1e-4, 2e-4, 5e-4, 1e-3])
    parser.add_argument("--betas", type=floats, default=[0.03, 0.1, 0.3])
    parser.add_argument("--epochs", type=floats, default=[1, 2])
    parser.add_argument("--seeds", type=floats, default=[0])
    args = parser.parse_args()
    reached: dict[str, bool] = {}
    for task in args.tasks:
        shared = {"task": task, "beta": 0.1, "epochs": 1, "seed": int(args.seeds[0])}
        measure_missing(args, [{**shared, "method": SFT, "rate": 1e-3}],
                        lambda **case: measured(args, **case), told)
        for method in args.only:
            own = {**shared, "method": method}
            by_rate = found(args, [{**own, "rate": rate} for rate in args.rates])
            chosen = {key: best(by_rate)[key] for key in ("task", "method", "rate", "beta", "epochs")}
            found(args, [{**chosen, "seed": int(seed), **change} for seed in args.seeds
                         for change in [*({"beta": beta} for beta in args.betas),
                                        *({"epochs": int(number)} for number in args.epochs)]])
            default = objectives()[method].defaults["lr"]
            reached[method] = reached.get(method, False) or chosen["rate"] == default
    end_with({f"{method}: the default rate is the best on a task": is_best for method, is_best in reached.items()})


def found(args: argparse.Namespace, cases: list[Result]) -> list[Result]:
    """The results of these cases, measured where they are missing."""
    results = measure_missing(args, cases, lambda **case: measured(args, **case), told)
    return [result for result in results if any(case.items() <= result.items() for case in cases)]


if __name__ == "__main__":
    main()
