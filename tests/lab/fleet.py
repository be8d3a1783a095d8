"""Devices that each know two kinds of rows learn all in rounds, compared with one training on all rows.

The kinds are the seven intents of Snips, or with `--task home` the ten devices of the demonstration's commands, of
which 6 rows of a kind are enough for 20 devices. Device d has `rows` rows of kind 2 d and as many of kind 2 d + 1,
modulo the kinds, and no row that another has. Answers to rows of all kinds that nobody learned are exact, or not.
Variants:

    svd, frozen-a, rolora   rounds by edgetune's own tasks, answers and aggregates, each of which is a folder
    all                     one training on all rows, by the defaults of edgetune train
    alone                   single devices by the same defaults: the mean of the first few
    centroids               without a language model: devices send the sum and count of MiniLM's vectors of each kind,
                            and a question has the kind of the nearest mean. It knows no slots
    lr                      logistic regression on the vectors of all rows, which nobody could train without them

Devices are trained one after the other in this process, on rows that are tokenised once, by one trainer a round, whose
moments begin again for each. A round that ended is kept next to --out and not computed again. Results are added to
--out, and what it already holds is not measured again.
Exits with 1 unless the best of svd, frozen-a and rolora has 90 % of the right answers of `all`.
"""

import argparse
import json
import math
import statistics
import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from json_lines import read_lines
from lab.common import (
    DEMO,
    SNIPS,
    Result,
    add_usual,
    against,
    end_with,
    folder_of,
    grouped,
    joined,
    mean_interval,
    measure_missing,
    snips,
)

from edgetune.adapters.base import Artifact
from edgetune.adapters.lora import Lora
from edgetune.adapters.store import open_adapter
from edgetune.data.dataset import Dataset, load_rows
from edgetune.demo.run import SYSTEM as HOME_SYSTEM
from edgetune.evaluation.native import engine_within, native_loss, native_match
from edgetune.formats.bundle import open_bundle
from edgetune.formats.named import find_model
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.parts.fleet.rounds.answer import VERSION, AnswerFacts, write_answer
from edgetune.parts.fleet.rounds.lead import make_task, write_next
from edgetune.parts.fleet.rounds.member import changes, norm_of_change
from edgetune.parts.fleet.rounds.options import RoundOptions
from edgetune.parts.fleet.rounds.reach import rate_for, share_of
from edgetune.parts.fleet.rounds.task import of_round, open_task
from edgetune.serving.embedding import open_vectors
from edgetune.training.config import TrainConfig
from edgetune.training.trainer import Trainer

FLEETS = ("svd", "frozen-a", "rolora")
VARIANTS = ("centroids", "lr", "all", *FLEETS, "alone")
ENOUGH = 0.9  # of the right answers of a training on all rows
KINDS = 2  # that a device knows


@dataclass(frozen=True)
class Rows:
    """The rows of devices, and the questions. key: of the kind in an answer's JSON."""

    key: str
    system: str
    devices: list[list[Result]]
    questions: list[Result]

    @property
    def all(self) -> list[Result]:
        return [row for device in self.devices for row in device]

    def kind(self, answer: str) -> str:
        try:
            return str(json.loads(answer)[self.key])
        except (ValueError, TypeError, KeyError):
            return ""


def rows_of(args: argparse.Namespace, seed: int) -> Rows:
    """The rows of a task, divided among devices by a seed."""
    is_snips = args.task == "snips"
    found = Rows("intent" if is_snips else "device", SNIPS if is_snips else HOME_SYSTEM,
                 [[] for _ in range(args.devices)],
                 snips(args.shared, "dev") if is_snips else read_lines(DEMO / "home_heldout.jsonl"))
    rows = snips(args.shared) if is_snips else read_lines(DEMO / "home_train.jsonl")
    of_kind: dict[str, list[Result]] = {}
    for index in np.random.default_rng(seed).permutation(len(rows)):
        of_kind.setdefault(found.kind(rows[index]["completion"]), []).append(rows[index])
    names = sorted(of_kind)
    for number, device in enumerate(found.devices):
        for name in (names[(KINDS * number + i) % len(names)] for i in range(KINDS)):
            device += [of_kind[name].pop() for _ in range(args.rows)]
    return replace(found, questions=found.questions[:args.questions])


class Learner:
    """Trains and asks the model in this process."""

    def __init__(self, args: argparse.Namespace, rows: Rows) -> None:
        self.args = args
        self.rows = rows
        self.bundle = open_bundle(args.model)
        self.tokenizer = Tokenizer(args.model)

    def load(self, rows: list[Result]) -> Dataset:
        return load_rows(rows, self.tokenizer, max_length=128, system=self.rows.system)

    def config(self, seed: int, **options) -> TrainConfig:
        return TrainConfig(**{"max_length": 128, "system": self.rows.system, "seed": seed, "anchors": 0,
                              "threads": self.args.threads, **options})

    def of_device(self, family: str, seed: int, number: int = 1) -> TrainConfig:
        """The options of a device, with the learning rate that edgetune fleet train-round would take."""
        config = self.config(seed, family=family, schedule=self.args.schedule, epochs=self.args.epochs,
                             batch_size=self.args.batch)
        rate = rate_for(config, len(self.rows.devices[0]))
        return replace(config, lr=rate * share_of(self.args.planned_rounds, number))

    def train(self, data: Dataset, config: TrainConfig) -> Trainer:
        trainer = self.open(config)
        trainer.add_examples(data.examples)
        trainer.train()
        return trainer

    def open(self, config: TrainConfig) -> Trainer:
        return Trainer(self.bundle, config, lengths=[config.row_limit], tokenizer=self.tokenizer)

    def train_device(self, trainer: Trainer, data: Dataset, start: Lora) -> Lora:
        """Trains with a trainer as if it were new; its pairs."""
        trainer.examples = []
        trainer.add_examples(data.examples)
        for name in trainer.arena.buffers:
            if name.startswith("adam_"):
                trainer.arena.flat(name).fill(0)
        trainer.steps_done = 0
        trainer.decoder.adapter.load(Artifact(start), "the task")
        trainer.train()
        return trainer.pairs

    def asked(self, artifact) -> Result:
        """Whether each answer is exact, whether its kind is right, and the loss of the expected answers."""
        engine = replace(engine_within(), threads=self.args.threads)
        questions = self.rows.questions
        data = self.load(questions)
        loss, _ = native_loss(self.bundle, data, artifact, engine)
        found = native_match(self.bundle, self.tokenizer, data, artifact, engine, system=self.rows.system)
        kind = self.rows.kind
        return {"loss": loss, "right": [int(one.correct) for one in found],
                "kinds": [int(kind(one.answer) == kind(row["completion"]))
                          for one, row in zip(found, questions, strict=True)]}


def measured(args: argparse.Namespace, variant: str, seed: int) -> Result:
    began = time.process_time()
    rows = rows_of(args, seed)
    found = by_vectors(variant, rows) if variant in ("centroids", "lr") else trained(args, variant, seed, rows)
    return {**found, "rows": len(rows.all), "passes": args.rounds * args.epochs,
            "cpu_seconds": round(time.process_time() - began)}


def trained(args: argparse.Namespace, variant: str, seed: int, rows: Rows) -> Result:
    learner = Learner(args, rows)
    if variant == "all":
        trainer = learner.train(learner.load(rows.all), learner.config(seed))
        return learner.asked(trainer.artifact())
    if variant == "alone":
        found = []
        for device in rows.devices[:args.alone]:
            trainer = learner.train(learner.load(device), learner.config(seed))
            found.append(learner.asked(trainer.artifact()))
        return {"loss": statistics.fmean(one["loss"] for one in found),
                **{name: [statistics.fmean(each) for each in zip(*(one[name] for one in found), strict=True)]
                   for name in ("right", "kinds")}}
    folder, history = rounds(args, learner, variant, seed)
    pairs = open_adapter(folder, learner.bundle.gguf).pairs
    return {**learner.asked(Artifact(pairs)), "history": history}


# ---- rounds ----


def rounds(args: argparse.Namespace, learner: Learner, variant: str, seed: int) -> tuple[Path, list[Result]]:
    """The adapter after all rounds, and their records."""
    folder = folder_of(args) / f"{variant}-{seed}"
    options = RoundOptions(aggregation=variant, server_rate=args.server_rate)
    first = folder / "round-1"
    if not first.exists():
        family = of_round(TrainConfig(), options, 1).family.name
        make_task(learner.bundle, first, replace(learner.of_device(family, seed), threads=0), options)
    data = [learner.load(device) for device in learner.rows.devices]
    for number in range(1, args.rounds + 1):
        out = folder / f"round-{number + 1}"
        if out.exists():
            continue
        task = open_task(folder / f"round-{number}", learner.bundle)
        family = task.config.family
        trainer = learner.open(replace(learner.of_device(family.name, 1000 * seed + number, number), family=family))
        answers = []
        for device, one in enumerate(data):
            answers.append(folder / f"answer-{number}-{device:02}")
            if not answers[-1].exists():
                answer(task, learner, trainer, one, f"device {device:02}", answers[-1])
        ended = write_next(task, learner.bundle, answers, out)
        print(variant, json.dumps(vars(ended.record)), flush=True)
    last = open_task(folder / f"round-{args.rounds + 1}", learner.bundle)
    return last.adapter, last.facts.history


def answer(task, learner: Learner, trainer: Trainer, data: Dataset, device: str, out: Path) -> None:
    """What `edgetune fleet train-round` writes, without its process."""
    after = learner.train_device(trainer, data, task.pairs)
    facts = AnswerFacts(VERSION, task.name, device, task.base.fingerprint, "", task.half, 8, len(data.examples),
                        data.supervised, norm_of_change(task.pairs, after))
    write_answer(out, facts, changes(task, task.pairs, after), None)


# ---- without a language model ----


def by_vectors(variant: str, rows: Rows) -> Result:
    with closing(open_vectors(find_model("minilm"), threads=1)) as model:
        vectors, asked = (embedded(model.embedder, each) for each in (rows.all, rows.questions))
    labels = np.array([rows.kind(row["completion"]) for row in rows.all])
    wanted = [rows.kind(row["completion"]) for row in rows.questions]
    names = sorted(set(labels))
    if variant == "centroids":  # the sums over devices are the sums over all rows
        means = np.stack([vectors[labels == name].sum(0) / (labels == name).sum() for name in names])
        said = [names[i] for i in (asked @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(1)]
    else:
        from sklearn.linear_model import LogisticRegression
        said = list(LogisticRegression(max_iter=1000).fit(vectors, labels).predict(asked))
    return {"right": [0] * len(wanted), "kinds": [int(one == other) for one, other in zip(said, wanted, strict=True)]}


def embedded(embedder, rows: list[Result]) -> np.ndarray:
    """The vectors [rows, width] of the questions."""
    out = np.zeros((len(rows), embedder.width), np.float32)
    for _ in embedder.embed(out, [embedder.truncate(embedder.encode(row["prompt"])) for row in rows]):
        pass
    return out


# ---- what is said ----


def told(result: Result) -> str:
    history = result.get("history", [])
    sizes = f"; {history[-1]['up'] / 1e6:.1f} MB up from all, {history[-1]['down'] / 1e6:.1f} MB down to each" if (
        history) else ""
    return (f"{result['variant']:10} seed {result['seed']}: {statistics.fmean(result['right']):.1%} exact, "
            f"{statistics.fmean(result['kinds']):.1%} kinds, loss {result.get('loss', math.nan):.3f}, "
            f"{result['cpu_seconds']} CPU s{sizes}")


def options(parser: argparse.ArgumentParser) -> None:
    add_usual(parser, "fleet.jsonl", VARIANTS, seeds=[0, 1, 2], devices=20, rows=28, rounds=10, epochs=1.0,
              schedule="constant", server_rate=1.5, planned_rounds=10, batch=1, questions=300, alone=3, threads=1)
    parser.add_argument("--task", choices=("snips", "home"), default="snips")


def main(args: argparse.Namespace) -> None:
    cases = [{"variant": variant, "seed": seed} for seed in args.seeds for variant in args.only]
    found = grouped(measure_missing(args, cases, partial(measured, args), told), "variant")
    for variant, runs in found.items():
        exact, kinds = (mean_interval(joined(runs, name)) for name in ("right", "kinds"))
        beside = f"; exact against all {against(runs, found['all'], 'right')}" if "all" in found else ""
        print(f"{variant:10} {exact} exact, {kinds} kinds, {len(runs)} seeds{beside}")
    shares = {variant: statistics.fmean(joined(runs, "right")) for variant, runs in found.items()
              if variant in ("all", *FLEETS)}
    if "all" in shares and len(shares) > 1:
        best = max(share for variant, share in shares.items() if variant != "all")
        end_with({f"{best:.1%} of exact answers, {ENOUGH:.0%} of {shares['all']:.1%}": best >= ENOUGH * shares["all"]})
