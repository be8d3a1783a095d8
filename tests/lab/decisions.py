"""Typed questions (choice, levels, yes or no) about texts, answered by what a few rows taught, with probabilities.

For each task, way, number of rows and seed: accuracy, Brier score (0 to 2), the expected calibration error (15 bins of
equally many rows) beside the error of perfect probabilities of as many rows, and the share that is decided alone at 5 %
errors: the limit is known from learned rows (edgetune.serving.sureness), share and errors from unseen ones. Seconds are
those of the processor until all is learned, memory that of the process. Intervals of accuracy and Brier score are of
95 %, over draws of rows and of unseen rows. Probabilities are kept beside --out.

    make lab NAME=decisions ARGS="--only vectors heads --tasks snips --rows 20 80"
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
from lab.common import MIB, Result, add_usual, again, folder_of, grouped, measure_missing, read_results, table
from lab.decision_scores import Floats, Told, brier, interval, is_right, scores
from lab.decision_tasks import NAMES, Task, answers_of, draw, opened
from lab.decision_ways import CHOSEN, FEW, LETTERS, WAYS, Draw, Learned

SIZES = [5, 20, 80, 320]


class Vectors:
    """MiniLM's vectors of all states of a task, kept in a file."""

    def __init__(self, task: Task, folder: Path) -> None:
        from edgetune.serving.encoder import vectors
        states = list(dict.fromkeys(row["state"] for row in task.train + task.test))
        kept = folder / f"{task.name}.vectors.npy"
        if not kept.exists():
            np.save(kept, vectors("minilm", states, threads=1))
        self.found = np.load(kept, mmap_mode="r")
        self.places = {state: place for place, state in enumerate(states)}

    def __call__(self, states: list[str]) -> Floats:
        return np.asarray(self.found[[self.places[state] for state in states]])


def file_of(args: argparse.Namespace, case: Result) -> Path:
    """Where the probabilities of a case are kept."""
    name = "{task}-{rows}-{way}-{seed}".format(**case).replace(" ", "_")
    return folder_of(args) / f"{name}.npz"


def measured(args: argparse.Namespace, **case: object) -> Result:
    task = opened(str(case["task"]), args.shared, args.data)
    rows = draw(task, int(str(case["rows"])), int(str(case["seed"])))
    vectors = Vectors(task, folder_of(args))
    asked = task.test[:FEW.get(str(case["way"]), len(task.test))]
    begin = time.process_time()
    learned: Learned = WAYS[str(case["way"])](Draw(task, rows, int(str(case["seed"])),
                                                   file_of(args, case).with_suffix(""), vectors))
    seconds = time.process_time() - begin + learned.seconds
    mib = peak() / MIB
    told: dict[str, Told] = learned.ask([row["state"] for row in asked])
    kept = {f"{name}.p": found.p.astype(np.float32) for name, found in told.items()}
    kept |= {f"{name}.folds": found.astype(np.float32) for name, found in learned.folds.items()}
    np.savez_compressed(file_of(args, case), **kept)
    return {"seconds": round(seconds, 3), "mib": round(mib), "answers": {
        name: scores(found, task.targets(name, asked)) for name, found in told.items()}}


def peak() -> int:
    """The most bytes that this process had, without those of the one that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) << 10


def told_of(result: Result) -> str:
    found = ", ".join(f"{name} {one['accuracy']:.1%} right, Brier {one['brier']:.3f}, ECE {one['ece']:.3f}, "
                      f"{one['decided']:.0%} alone" for name, one in result["answers"].items())
    return "{task}, {rows} rows, {way}, seed {seed}: ".format(**result) + f"{found}; {result['seconds']:.1f} s"


def can(way: str, task: Task) -> bool:
    """Whether a way has a letter for each option."""
    return way != "letters" or max(len(answers_of(question)) for question in task.questions.values()) <= len(LETTERS)


def options(parser: argparse.ArgumentParser) -> None:
    add_usual(parser, "decisions.jsonl", WAYS, CHOSEN, rows=SIZES, seeds=[0, 1, 2, 3, 4], here=False)
    parser.add_argument("--tasks", nargs="+", choices=NAMES, default=[*NAMES])
    parser.add_argument("--data", type=Path, help="folder of make data's rows of decisions [data in --shared]")


def main(args: argparse.Namespace) -> None:
    """Each task, way and number of rows has a process of its own, so that its memory is known."""
    args.data = args.data or args.shared / "data"
    cases = [{"task": task, "rows": rows, "way": way, "seed": seed} for way in args.only for task in args.tasks
             if can(way, opened(task, args.shared, args.data)) for rows in args.rows for seed in args.seeds]
    if args.here:
        measure_missing(args, cases, partial(measured, args), told_of)
        return
    for (way, task, rows), _ in grouped(missing(args, cases), "way", "task", "rows").items():
        print(again("decisions", "--here", "--only", way, "--tasks", task, "--rows", rows, "--seeds", *args.seeds,
                    "--out", args.out, "--data", args.data, "--shared", args.shared), end="", flush=True)
    show(args, [result for result in read_results(args.out) if any(case.items() <= result.items() for case in cases)])


def missing(args: argparse.Namespace, cases: list[Result]) -> list[Result]:
    results = read_results(args.out)
    return [case for case in cases if not any(case.items() <= result.items() for result in results)]


def show(args: argparse.Namespace, results: list[Result]) -> None:
    """A table for each question and number of rows."""
    tasks = {name: opened(name, args.shared, args.data) for name in dict.fromkeys(one["task"] for one in results)}
    for (name, rows), found in grouped(results, "task", "rows").items():
        for question in tasks[name].questions:
            table([f"{name}.{question}, {rows} rows", "seeds", "right", "Brier", "ECE (by chance)", "alone",
                   "errors of these", "draws above 5 %", "s", "MiB"],
                  (line(args, tasks[name], question, way, runs) for way, runs in grouped(found, "way").items()))


def line(args: argparse.Namespace, task: Task, question: str, way: str, runs: list[Result]) -> list[object]:
    asked = runs[0]["answers"][question]["asked"]
    right = task.targets(question, task.test[:asked])
    p = [np.load(file_of(args, run))[f"{question}.p"].astype(np.float64) for run in runs]
    of_runs = [run["answers"][question] for run in runs]

    def mean(key: str) -> float:
        return float(np.mean([one[key] for one in of_runs]))

    alone = sum(round(one["decided"] * asked) for one in of_runs)
    accuracy, brier_score = (interval(values) for values in (
        [is_right(each, right) for each in p], [brier(each, right) for each in p]))
    broken = sum(one["wrong"] > 0.05 * round(one["decided"] * asked) for one in of_runs)
    return [way, len(runs), "{:.1%} ({:.1%}-{:.1%})".format(*accuracy), "{:.3f} ({:.3f}-{:.3f})".format(*brier_score),
            f"{mean('ece'):.3f} ({mean('ece_chance'):.3f})", f"{mean('decided'):.1%}",
            f"{sum(one['wrong'] for one in of_runs) / alone:.1%}" if alone else "", f"{broken} of {len(runs)}",
            f"{np.mean([run['seconds'] for run in runs]):.1f}", max(run["mib"] for run in runs)]
