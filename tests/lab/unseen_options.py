"""Options that no row taught: whether an encoder can tell them by their texts.

A quarter of a choice's options is hidden: their rows are not learned, and at the end all options are offered. Ways: the
cosine of the vectors of state and option; a network on [option, state x option] that learns from pairs of learned rows
and options which belong together (all rows of a task ask the same question, so that question x option says no more than
the option), and the same without a hidden layer; a cross-encoder, MiniLM trained by LoRA on "option: state" with one
right and NEGATIVES wrong options a row. Beside them `taught`: heads that learned FEW rows of each hidden option, too.
*hidden*: right answers among rows whose right option is hidden; *others*: among the other rows.

    make lab NAME=unseen-options ARGS="--only cosine network --tasks news"
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from lab.common import Result, add_usual, folder_of, grouped, measure_missing, read_results, table
from lab.decision_tasks import Task, answers_of, draw, opened
from lab.decision_ways import logistic
from lab.decisions import Vectors
from numpy.typing import NDArray

TASKS = ("banking20", "news", "snips", "banking77")
FEW = 5  # rows of a hidden option that `taught` has
NEGATIVES = 3
PAIRED = 200  # unseen rows that a cross-encoder is asked about
HIDDEN = 64  # units of the network
Floats = NDArray[np.floating]


class Case:
    """Learned rows, unseen rows, and options, as vectors. x: of states [n, D]; y: places of right options [n]."""

    def __init__(self, task: Task, size: int, seed: int, folder: Path) -> None:
        from edgetune.serving.encoder import vectors
        self.task, self.seed = task, seed
        [(self.name, question)] = task.questions.items()
        self.words = [str(key).replace("_", " ") for key in answers_of(question)]
        k = len(self.words)
        self.hidden = np.random.default_rng(seed).permutation(k)[:max(k // 4, 1)]
        known = draw(task, len(task.train), seed)
        right = task.targets(self.name, known)
        seen = [row for row, place in zip(known, right, strict=True) if place not in self.hidden][:size]
        self.extra = [row for option in self.hidden for row in
                      [row for row, place in zip(known, right, strict=True) if place == option][:FEW]]
        self.rows = seen
        of = Vectors(task, folder)
        self.states, self.asked = [row["state"] for row in seen], [row["state"] for row in task.test]
        self.x, self.y = of(self.states), task.targets(self.name, seen)
        self.more = of([row["state"] for row in self.extra]), task.targets(self.name, self.extra)
        self.unseen, self.right = of(self.asked), task.targets(self.name, task.test)
        self.options = vectors("minilm", self.words, threads=1)


def by_cosine(case: Case) -> Floats:
    return case.unseen @ case.options.T


def pairs(case: Case) -> tuple[Floats, NDArray[np.bool_]]:
    """Features of each learned row with each learned option, and whether they belong together."""
    seen = np.setdiff1d(np.arange(len(case.words)), case.hidden)
    found = np.concatenate([features(case.x, case.options[place]) for place in seen])
    return found, np.concatenate([case.y == place for place in seen])


def features(x: Floats, option: Floats) -> Floats:
    """Each has a variance of about 1, as the vectors of D numbers have the length 1."""
    width = x.shape[1]
    return np.concatenate([np.broadcast_to(width ** 0.5 * option, x.shape), width * x * option], axis=1)


def by_network(case: Case) -> Floats:
    from sklearn.neural_network import MLPClassifier
    model = MLPClassifier((HIDDEN,), alpha=1.0, max_iter=60, random_state=case.seed).fit(*pairs(case))
    return np.stack([model.predict_proba(features(case.unseen, option))[:, 1] for option in case.options], axis=1)


def by_regression(case: Case) -> Floats:
    """The network without a hidden layer."""
    from sklearn.linear_model import LogisticRegression
    model = LogisticRegression(C=0.01, max_iter=1000).fit(*pairs(case))
    return np.stack([model.decision_function(features(case.unseen, option)) for option in case.options], axis=1)


def by_cross_encoder(case: Case, folder: Path) -> Floats:
    import edgetune
    rng = np.random.default_rng(case.seed)
    seen = np.setdiff1d(np.arange(len(case.words)), case.hidden)
    learned = []
    for state, place in zip(case.states, case.y, strict=True):
        others = rng.permutation(seen[seen != place])[:NEGATIVES]
        learned += [{"prompt": f"{case.words[option]}: {state}", "completion": "yes" if option == place else "no"}
                    for option in (place, *others)]
    out = folder / f"cross-{case.task.name}-{len(case.states)}-{case.seed}"
    shutil.rmtree(out, ignore_errors=True)
    edgetune.train("minilm", learned, out, "none", answers=False, threads=1, seed=case.seed)
    with edgetune.Classifier("minilm", out, threads=1) as served:
        place = served.learned.labels.index("yes")
        return np.array([[one.probabilities[place] for one in served.classify(
            [f"{words}: {state}" for words in case.words])] for state in case.asked[:PAIRED]])


def taught(case: Case) -> Floats:
    """Also the least that teaching takes: FEW rows of each hidden option."""
    x, y = np.concatenate([case.x, case.more[0]]), np.concatenate([case.y, case.more[1]])
    return logistic(x, y, len(case.words), 30)(case.unseen)


def without(case: Case) -> Floats:
    """The heads of the learned options, which never answer a hidden one."""
    return logistic(case.x, case.y, len(case.words), 30)(case.unseen)


WAYS = {"without": without, "taught": taught, "cosine": by_cosine, "regression": by_regression, "network": by_network,
        "cross-encoder": by_cross_encoder}


def options(parser: argparse.ArgumentParser) -> None:
    add_usual(parser, "unseen_options.jsonl", WAYS, tuple(WAYS)[:-1], rows=[80, 320], seeds=[0, 1, 2, 3, 4])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS[:3]))
    parser.add_argument("--data", type=Path, help="folder of make data's rows of decisions [data in --shared]")


def measured(args: argparse.Namespace, **case: object) -> Result:
    task = opened(str(case["task"]), args.shared, args.data or args.shared / "data")
    folder = folder_of(args)
    drawn = Case(task, int(str(case["rows"])), int(str(case["seed"])), folder)
    is_cross = case["way"] == "cross-encoder"
    z = by_cross_encoder(drawn, folder) if is_cross else WAYS[str(case["way"])](drawn)
    right = drawn.right[:len(z)]
    is_hidden = np.isin(right, drawn.hidden)
    found = z.argmax(1) == right
    return {"hidden": float(found[is_hidden].mean()), "others": float(found[~is_hidden].mean()),
            "all": float(found.mean()), "of": int(is_hidden.sum())}


def told_of(result: Result) -> str:
    return ("{task}, {rows} rows, {way}, seed {seed}: hidden {hidden:.1%}, others {others:.1%}, all {all:.1%}"
            .format(**result))


def main(args: argparse.Namespace) -> None:
    cases = [{"task": task, "rows": rows, "way": way, "seed": seed} for task in args.tasks for rows in args.rows
             for way in args.only for seed in args.seeds]
    measure_missing(args, cases, lambda **case: measured(args, **case), told_of)
    for (task, rows), found in grouped(read_results(args.out), "task", "rows").items():
        table([f"{task}, {rows} rows", "seeds", "hidden", "others", "all"],
              ([way, len(runs), *(mean(runs, name) for name in ("hidden", "others", "all"))]
               for way, runs in grouped(found, "way").items()))


def mean(runs: list[Result], name: str) -> str:
    values = [run[name] for run in runs]
    return f"{np.mean(values):.1%} ({min(values):.0%} to {max(values):.0%})"
