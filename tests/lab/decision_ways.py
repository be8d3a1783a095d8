"""Ways to answer typed questions: what `make lab NAME=decisions` compares.

A way is given a draw, learns its rows, and gives back what answers other states. Probabilities are [n, k], in the order
of a question's options; an option that no learned row has gets what the way makes of it, which is 0 for most.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from lab.common import Row, model_path, served
from lab.decision_scores import Floats, Told, limit_of
from lab.decision_tasks import Answers, Task, answers_of, words_of
from lab.run import python_with
from numpy.typing import NDArray

FOLDS = 5
COOLEST, HOTTEST = 0.05, 20.0  # temperatures
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROBED = 64  # texts by which the seconds of a vector are known
SPARROW = "sparrow-decider==0.2.0"
Places = NDArray[np.intp]
Predict = Callable[[Places, Places], Floats]
"""From the places of rows that are learned and of others to probabilities [n, k] of the others."""


@dataclass(frozen=True)
class Draw:
    """rows: what is learned. folder: for what is kept. vectors: of texts, without taking time."""

    task: Task
    rows: list[Row]
    seed: int
    folder: Path
    vectors: Callable[[Sequence[str]], Floats]

    @cached_property
    def states(self) -> list[str]:
        return [row["state"] for row in self.rows]

    def targets(self, name: str) -> Answers:
        return self.task.targets(name, self.rows)

    def count(self, name: str) -> int:
        return len(answers_of(self.task.questions[name]))


@dataclass(frozen=True)
class Learned:
    """ask: from states to what is told of each question. folds: by question probabilities [n, k] of the learned rows by
    models that did not learn them. seconds: of the processor, beside those of this process.
    """

    ask: Callable[[Sequence[str]], dict[str, Told]]
    folds: Mapping[str, Floats] = field(default_factory=dict)
    seconds: float = 0.0


Way = Callable[[Draw], Learned]

# ---- folds and temperature -------------------------------------------------------------------------------------------


def dealt(right: Answers) -> Answers:
    """The fold [n] of each row: the rows of each option are dealt to the folds in turn."""
    fold = np.empty(right.size, np.int64)
    for option in np.unique(right):
        rows = np.flatnonzero(right == option)
        fold[rows] = (np.arange(rows.size) + option) % FOLDS
    return fold


def out_of_fold(right: Answers, k: int, predict: Predict) -> Floats:
    """Probabilities [n, k] of all rows by a model that learned the other folds."""
    found = np.zeros((right.size, k))
    fold = dealt(right)
    for number in np.unique(fold):
        out = np.flatnonzero(fold == number)
        found[out] = predict(np.flatnonzero(fold != number), out)
    return found


def tempered(p: Floats, temperature: float) -> Floats:
    with np.errstate(divide="ignore"):
        z = np.log(p) / temperature
    z -= z.max(1, keepdims=True)
    found: Floats = np.exp(z)
    found /= found.sum(1, keepdims=True)
    return found


def temperature_of(p: Floats, right: Answers) -> float:
    """That with the least -log p of the rows [n] whose option is known to their fold; 1 without any."""
    from scipy.optimize import minimize_scalar
    rows = np.flatnonzero(p[np.arange(right.size), right] > 0)
    if not rows.size:
        return 1.0

    def loss(log_temperature: float) -> float:
        found = tempered(p[rows], float(np.exp(log_temperature)))
        return float(-np.log(np.maximum(found[np.arange(rows.size), right[rows]], 1e-30)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log([COOLEST, HOTTEST]), method="bounded").x))


# ---- by scikit-learn -------------------------------------------------------------------------------------------------


def majority(draw: Draw) -> Learned:
    """Shares of the options among the learned rows, one more of each counted."""
    def shares(right: Answers, k: int, n: int) -> Floats:
        return np.tile((np.bincount(right, minlength=k) + 1) / (right.size + k), (n, 1))

    told = {}
    folds = {}
    for name in draw.task.questions:
        right, k = draw.targets(name), draw.count(name)
        folds[name] = out_of_fold(right, k, lambda rows, out, right=right, k=k: shares(right[rows], k, out.size))
        told[name] = (right, k)
    return Learned(lambda states: {name: Told(shares(*given, len(states)), limit_of(folds[name], given[0]))
                                   for name, given in told.items()}, folds)


def logistic(x: Any, right: Answers, k: int, c: float) -> Callable[[Any], Floats]:
    """Multinomial logistic regression, from features of some rows to probabilities [n, k] of others."""
    from sklearn.linear_model import LogisticRegression
    seen = np.unique(right)
    model = LogisticRegression(C=c, max_iter=1000).fit(x, right) if seen.size > 1 else None

    def ask(others: Any) -> Floats:
        p = np.zeros((others.shape[0], k))
        p[:, seen] = model.predict_proba(others) if model else 1.0
        return p

    return ask


def regression(draw: Draw, features: Callable[[Sequence[str]], tuple[Any, Callable[[Sequence[str]], Any]]], c: float,
               has_temperature: bool, seconds: float = 0.0) -> Learned:
    """features: from the learned texts to their features, and what makes those of others."""
    def predict(name: str, rows: Places, out: Places) -> Floats:
        x, of_others = features([draw.states[place] for place in rows])
        return logistic(x, draw.targets(name)[rows], draw.count(name), c)(
            of_others([draw.states[place] for place in out]))

    x, of_others = features(draw.states)
    asks = {}
    folds = {}
    temperatures = {}
    for name in draw.task.questions:
        right, k = draw.targets(name), draw.count(name)
        asks[name] = logistic(x, right, k, c)
        held = out_of_fold(right, k, partial(predict, name))
        temperatures[name] = temperature_of(held, right) if has_temperature else 1.0
        folds[name] = tempered(held, temperatures[name])

    def ask(states: Sequence[str]) -> dict[str, Told]:
        others = of_others(states)
        return {name: Told(tempered(of(others), temperatures[name]), limit_of(folds[name], draw.targets(name)))
                for name, of in asks.items()}

    return Learned(ask, folds, seconds)


def by_words(draw: Draw, c: float = 10, has_temperature: bool = False) -> Learned:
    """Counts of words and pairs of words."""
    def features(known: Sequence[str]) -> tuple[Any, Callable[[Sequence[str]], Any]]:
        from sklearn.feature_extraction.text import TfidfVectorizer
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        return words.fit_transform(known), words.transform

    return regression(draw, features, c, has_temperature)


def by_vectors(draw: Draw, c: float = 10, has_temperature: bool = False) -> Learned:
    """MiniLM's vectors."""
    seconds = seconds_of_a_vector(draw.states) * len(draw.states)
    return regression(draw, lambda known: (draw.vectors(known), draw.vectors), c, has_temperature, seconds)


PROBES: list[float] = []


def seconds_of_a_vector(states: Sequence[str]) -> float:
    """Measured once a process, which then has the encoder's memory too."""
    from edgetune.serving.encoder import vectors
    if not PROBES:
        began = time.process_time()
        vectors("minilm", states[:PROBED], threads=1)
        PROBES.append((time.process_time() - began) / len(states[:PROBED]))
    return PROBES[0]


# ---- by edgetune -----------------------------------------------------------------------------------------------------


def trained(draw: Draw, name: str, rows: Places, out: Path, **how: Any) -> Callable[[Sequence[str]], Told]:
    """A question alone, learned from rows with a text and a label."""
    import edgetune
    from edgetune.objectives.classify import Classify
    words, right, k = words_of(draw.task.questions[name]), draw.targets(name)[rows], draw.count(name)
    seen = np.unique(right)
    if seen.size == 1:
        return lambda states: Told(np.tile(np.eye(k)[seen[0]], (len(states), 1)))
    learned = [{"prompt": draw.states[place], "completion": words[target]}
               for place, target in zip(rows, right, strict=True)]
    labels = tuple(words[place] for place in seen)
    if not (out / "run.json").exists():
        edgetune.train("minilm", learned, out, answers=False, threads=1, seed=draw.seed,
                       objective=Classify(labels=labels), **how)

    def ask(states: Sequence[str]) -> Told:
        with edgetune.Classifier("minilm", out, threads=1) as classifier:
            p = np.zeros((len(states), k))
            p[:, seen] = (by_heads(out, draw.vectors(states), seen.size) if how.get("steps") == 1
                          else [one.probabilities for one in classifier.classify(states)])
            return Told(p, classifier.sureness.threshold(0.95) if classifier.sureness else np.inf)

    return ask


def by_heads(out: Path, vectors: Floats, k: int) -> Floats:
    """Probabilities [n, k] by the head of an adapter that changes no vector, which are then those that are kept."""
    from edgetune.adapters.store import read_artifact
    from edgetune.formats.bundle import open_bundle
    from edgetune.serving.calibration import calibrations_of, cooled
    found = read_artifact(out, open_bundle("minilm").gguf)
    [head] = found.tensors.values()
    [known] = calibrations_of(found, str(out))
    return cooled(vectors @ head[:-k].reshape(k, -1).T + head[-k:], known.temperature)


def by_edgetune(draw: Draw, has_folds: bool = False, **how: Any) -> Learned:
    """An adapter a question, of rows with a label. has_folds: trains FOLDS others, by which answers are sure."""
    import shutil
    every = np.arange(len(draw.rows))
    asks = {}
    folds = {}
    shutil.rmtree(draw.folder, ignore_errors=True)
    for name in draw.task.questions:
        asks[name] = trained(draw, name, every, draw.folder / name, **how)
        if has_folds:
            folds[name] = out_of_fold(draw.targets(name), draw.count(name), partial(one_fold, draw, name, how))

    def ask(states: Sequence[str]) -> dict[str, Told]:
        told = {name: of(states) for name, of in asks.items()}
        shutil.rmtree(draw.folder, ignore_errors=True)
        return {name: Told(found.p, limit_of(folds[name], draw.targets(name)) if has_folds else found.limit)
                for name, found in told.items()}

    return Learned(ask, folds)


def one_fold(draw: Draw, name: str, how: Mapping[str, Any], rows: Places, out: Places) -> Floats:
    ask = trained(draw, name, rows, draw.folder / f"{name}-{out[0]}", **how)
    return ask([draw.states[place] for place in out]).p


# ---- without learning ------------------------------------------------------------------------------------------------


def unlearned(draw: Draw, ask: Callable[[Sequence[str]], dict[str, Floats]]) -> Learned:
    """All learned rows say when an answer may be decided alone."""
    folds = ask(draw.states)
    return Learned(lambda states: {name: Told(p, limit_of(folds[name], draw.targets(name)))
                                   for name, p in ask(states).items()}, folds)


def by_letters(draw: Draw) -> Learned:
    """SmolLM2's probability of the letter of each option, behind the state and the question."""
    kept = draw.folder.parent / f"{draw.task.name}.letters.json"
    known: dict[str, dict[str, list[float]]] = json.loads(kept.read_text()) if kept.exists() else {}

    def ask(states: Sequence[str]) -> dict[str, Floats]:
        if missing := [state for state in dict.fromkeys(states) if state not in known]:
            with served(model_path(), context=2048, threads=1) as opened:
                for state in missing:
                    known[state] = {name: of_letters(opened, state, question)
                                    for name, question in draw.task.questions.items()}
            kept.write_text(json.dumps(known))
        return {name: np.array([known[state][name] for state in states]) for name in draw.task.questions}

    return unlearned(draw, ask)


def of_letters(opened: Any, state: str, question: Row) -> list[float]:
    words = words_of(question)
    lines = [f"{letter}. {text.replace('_', ' ')}" for letter, text in zip(LETTERS, words, strict=False)]
    asked = "\n".join([state, "", question["instructions"], *lines, "", "Answer with one letter."])
    prompt = opened.render([{"role": "user", "content": asked}], None, None)
    ids = opened.tokenizer.encode(prompt)
    wanted = np.zeros(len(ids), bool)
    wanted[-1] = True
    letters = [opened.tokenizer.encode(letter, continues=True)[0] for letter in LETTERS[:len(words)]]
    z = next(logits[-1][letters].astype(np.float64) for _, logits in opened.cache.feed(ids, wanted))
    p = np.exp(z - z.max())
    return list(p / p.sum())


ASK_SPARROW = """
import json, sys
from sparrow_decider import Decider
decider = Decider.load()
states, questions = json.load(sys.stdin)
json.dump({name: [[float(x) for x in decider.probs(state, question)[3]] for state in states]
           for name, question in questions.items()}, sys.stdout)
"""


def by_sparrow(draw: Draw) -> Learned:
    """sparrow-nano, whose weights are in its wheel, in an environment of its own."""
    def ask(states: Sequence[str]) -> dict[str, Floats]:
        done = subprocess.run([python_with("sparrow", SPARROW), "-c", ASK_SPARROW], text=True, check=True,
                              input=json.dumps([list(states), draw.task.questions]), stdout=subprocess.PIPE)
        return {name: np.array(p) for name, p in json.loads(done.stdout).items()}

    return unlearned(draw, ask)


WAYS: dict[str, Way] = {
    "majority": majority,
    "words": by_words,
    "words T": partial(by_words, has_temperature=True),
    "vectors": by_vectors,
    "vectors T": partial(by_vectors, has_temperature=True),
    **{f"vectors C={c}{name}": partial(by_vectors, c=c, has_temperature=has) for c in (1, 3, 30, 100)
       for name, has in (("", False), (" T", True))},
    "heads": partial(by_edgetune, eval="none", steps=1),
    "default": by_edgetune,
    "lora": partial(by_edgetune, eval="none"),
    "lora folds": partial(by_edgetune, has_folds=True, eval="none"),
    "letters": by_letters,
    "sparrow": by_sparrow,
}
CHOSEN = ("majority", "words", "words T", "vectors", "vectors T", "heads", "default", "lora")
FEW = {"letters": 200}  # unseen rows of ways that are slow
