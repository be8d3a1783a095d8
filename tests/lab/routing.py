"""How often a library chooses the right adapter, by several ways to choose, on rows of public tasks.

    make lab NAME=routing ARGS="TASK=TRAIN:TEST... --unlike NAME=FILE... [--by words]"

TRAIN, TEST and FILE hold rows with a prompt. Of each task some random rows of TRAIN are its questions, and of each TEST
and FILE the same random rows are asked. `ours` is edgetune.serving.tasks. The others: the nearest question,
and scikit-learn's logistic regression, each with the limit of `ours` on likeness. Vectors: minilm's, the base's hidden
states (smollm2), or counts of words.

Prints percentages, means over the seeds: routed (the right task, without a limit), right (with it), and for each of
--unlike how many are taken for a task, which the base should answer.
"""

import argparse
import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from json_lines import read_lines
from lab.common import add
from sklearn.linear_model import LogisticRegression

from edgetune.formats.named import find_model
from edgetune.serving.encoder import vectors
from edgetune.serving.llama import LlamaModel
from edgetune.serving.neighbours import Floats
from edgetune.serving.tasks import LearnedTask, Tasks

WORDS = 4096  # hashed
LONGEST = 64  # tokens of a text that the base reads here


def of_words(texts: Sequence[str]) -> Floats:
    found = np.zeros((len(texts), WORDS), np.float32)
    for row, text in zip(found, texts, strict=True):
        for word in re.findall(r"\w+|[^\w\s]", text.lower()):
            row[zlib.crc32(word.encode()) % WORDS] += 1
    found = np.sqrt(found)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def of_base(texts: Sequence[str]) -> Floats:
    with LlamaModel(find_model("smollm2"), context=512, threads=1) as served:
        embedder = served.embedder()
        found = np.empty((len(texts), embedder.width), np.float32)
        for _ in embedder.embed(found, [embedder.encode(text)[:LONGEST] for text in texts]):
            pass
        embedder.close()
    return found


BY: dict[str, Callable[[Sequence[str]], Floats]] = {
    "minilm": lambda texts: vectors("minilm", texts, threads=1), "smollm2": of_base, "words": of_words}


class Limited:
    """A choice with the limit of `LearnedTask`."""

    def __init__(self, questions: dict[str, Floats], routed: Callable[[Floats], np.ndarray]) -> None:
        self.tasks = [LearnedTask.of(own) for own in questions.values()]
        self.routed = routed

    def takes(self, asked: Floats) -> np.ndarray:
        chosen = self.routed(asked)
        return np.array([self.tasks[i].is_like(each) for i, each in zip(chosen, asked, strict=True)])


def ways(questions: dict[str, Floats]) -> dict[str, Limited]:
    names = list(questions)
    y = np.repeat(np.arange(len(names)), [len(own) for own in questions.values()])
    logistic = LogisticRegression(C=10, max_iter=1000).fit(np.concatenate([*questions.values()]), y)
    ours = Tasks(questions)
    return {"nearest question": Limited(questions, lambda asked: np.argmax(
                [(asked @ own.T).max(1) for own in questions.values()], axis=0)),
            "logistic regression": Limited(questions, logistic.predict),
            "ours": Limited(questions, lambda asked: np.array([names.index(ours.nearest(each)) for each in asked]))}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--unlike", nargs="+", default=[])
    parser.add_argument("--by", nargs="+", choices=BY, default=["minilm"])
    add(parser, rows=[60, 200], seeds=[0, 1, 2], asked=200)


def main(args: argparse.Namespace) -> None:
    def sample(path: str, count: int, seed: int) -> list[str]:
        texts = sorted({row["prompt"] for row in read_lines(Path(path))})
        chosen = np.random.default_rng(seed).permutation(len(texts))[:count]
        return [texts[i] for i in chosen]

    files = {name: pair.split(":") for name, pair in (task.split("=") for task in args.tasks)}
    unlike = dict(each.split("=") for each in args.unlike)
    for by in args.by:
        asked = {name: BY[by](sample(test, args.asked, 0)) for name, (_, test) in files.items()}
        other = {name: BY[by](sample(path, args.asked, 0)) for name, path in unlike.items()}
        pool = {(name, seed): BY[by](sample(train, max(args.rows), seed + 1))
                for name, (train, _) in files.items() for seed in args.seeds}
        y = np.repeat(np.arange(len(files)), [len(each) for each in asked.values()])
        x = np.concatenate([*asked.values()])
        for rows in args.rows:
            found: dict[str, list[list[float]]] = {}
            for seed in args.seeds:
                for name, way in ways({task: pool[task, seed][:rows] for task in files}).items():
                    is_right = way.routed(x) == y
                    numbers = [is_right.mean(), (is_right & way.takes(x)).mean()]
                    found.setdefault(name, []).append(numbers + [way.takes(each).mean() for each in other.values()])
            for name, numbers in found.items():
                means = {column: round(100 * float(value), 1) for column, value in
                         zip(("routed", "right", *unlike), np.mean(numbers, axis=0), strict=True)}
                print(json.dumps({"by": by, "rows": rows, "way": name, **means,
                                  "seeds": [round(100 * float(each[1]), 1) for each in numbers]}), flush=True)
