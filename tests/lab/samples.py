"""Sums with a verifier: how many are right by one of k answers, and for how many tokens.

A model that learned 60 sums (as of `methods`) answers others 16 times each. Of the first k answers one is
chosen: that of the majority, the likeliest, or the one that a calculator finds right. stopped: the tokens where no
further answer is made once none can change the choice. alone: as many tokens in one answer, which is told "Wait" and
asked again until they are spent; its last number counts. greedy: the likeliest answer, which ends by itself.

Exits with 1 unless the best of 8 answers by the calculator
is right more often than one answer, however many tokens it has (paired, one-sided, p < 0.05).
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from json_lines import write_lines
from lab.common import (
    SIGNIFICANT,
    Result,
    add_result,
    add_usual,
    edgetune,
    end_with,
    folder_of,
    read_results,
    served,
    table,
)
from lab.comparisons import sums

from edgetune.evaluation.acceptance import Paired
from edgetune.evaluation.chosen import Chooser, LikeliestAnswer, Majority, Preferred, chosen, part_of
from edgetune.evaluation.graders.base import read_grader
from edgetune.evaluation.judge import same
from edgetune.serving.draws import DrawnAnswer, Draws
from edgetune.serving.llama import LlamaModel

COUNTS = (1, 2, 4, 8, 16)
LONGER = (1, 8)  # of COUNTS: as many tokens in one answer
LEARNED = 60
CALCULATOR = read_grader({"type": "numeric", "name": "sum", "reference": "{{ item.completion }}"})
WAIT = "\nWait, let me add again. The sum is "
NUMBER = re.compile(r"\d+")
MOST = 12  # tokens of an answer


class Taken:
    """The first answers, which were made already, as Draws gives them."""

    def __init__(self, made: list[DrawnAnswer]) -> None:
        self.made = iter(made)
        self.tokens = 0

    def __iter__(self) -> Iterator[DrawnAnswer]:
        for each in self.made:
            self.tokens += each.tokens + 1
            yield each

    def close(self) -> None:
        """Nothing is open."""


def adapter_of(model: Path, folder: Path, seed: int) -> Path:
    out = folder / f"start-{seed}"
    if not out.exists():
        rows = write_lines(folder / f"sums-{seed}.jsonl", sums(seed)[:LEARNED])
        edgetune("train", model, rows, "-o", out, "--epochs", 4, "--eval", "none", "--seed", seed, "--no-govern",
                 "--json")
    return out


def ways(item: dict[str, str]) -> dict[str, Chooser]:
    return {"majority": Majority(), "likelihood": LikeliestAnswer(), "calculator": Preferred(CALCULATOR, item)}


def by_samples(made: list[DrawnAnswer], item: dict[str, str]) -> Result:
    """{way and k: [right, tokens without stopping, tokens]}"""
    found: Result = {}
    for k in COUNTS:
        for way, chooser in ways(item).items():
            taken = Taken(made[:k])
            choice = chosen(taken, k, chooser)  # type: ignore[arg-type]
            whole = sum(each.tokens + 1 for each in made[:k])
            found[f"{way} {k}"] = [same(item["completion"], choice.drawn.text), whole, taken.tokens]
    return found


def alone(opened: LlamaModel, prompt: str, item: dict[str, str], first: DrawnAnswer, temperature: float,
          budgets: dict[int, float]) -> Result:
    """The first answer, continued until as many tokens are spent as k answers have in the mean: [right, tokens]."""
    text = first.text
    tokens = first.tokens + 1
    found: Result = {}
    for k, budget in budgets.items():
        while tokens < budget:
            [more] = Draws(opened, prompt + text + WAIT, 1, temperature=temperature, max_tokens=MOST, seed=tokens)
            text += WAIT + more.text
            tokens += opened.count(WAIT) + more.tokens + 1
        found[f"alone {k}"] = [same(item["completion"], part_of(text, NUMBER)), tokens, tokens]
    return found


def measured(model: Path, folder: Path, seed: int, asked: int, temperature: float) -> list[Result]:
    rows = sums(seed)[660 : 660 + asked]
    found = []
    with served(model, adapter_of(model, folder, seed), threads=1, context=1024) as opened:
        prompts = [str(opened.render([{"role": "user", "content": row["prompt"]}], None, "adapter")) for row in rows]
        drawn = []
        for i, prompt in enumerate(prompts):
            first = (seed * asked + i) * max(COUNTS)
            made = sorted(Draws(opened, prompt, max(COUNTS), temperature=temperature, max_tokens=MOST, seed=first),
                          key=lambda each: each.index)
            drawn.append(made)
        each = mean(one.tokens + 1 for made in drawn for one in made)
        budgets = {k: k * each for k in LONGER}
        for row, prompt, made in zip(rows, prompts, drawn, strict=True):
            [greedy] = Draws(opened, prompt, 1, max_tokens=MOST)
            found.append({"seed": seed, "prompt": row["prompt"], **by_samples(made, row),
                          **alone(opened, prompt, row, made[0], temperature, budgets),
                          "greedy 1": [same(row["completion"], greedy.text), greedy.tokens + 1, greedy.tokens + 1]})
    return found


def curve(results: list[Result]) -> dict[str, dict[int, tuple[float, float, float]]]:
    """{way: {k: (share right, tokens, tokens with stopping)}}"""
    found: dict[str, dict[int, tuple[float, float, float]]] = defaultdict(dict)
    for name in results[0]:
        way, _, k = name.partition(" ")
        if k.isdecimal():
            values = [result[name] for result in results]
            found[way][int(k)] = (mean(v[0] for v in values), mean(v[1] for v in values), mean(v[2] for v in values))
    return found


def options(parser: argparse.ArgumentParser) -> None:
    add_usual(parser, "samples.jsonl", seeds=[0, 1, 2], asked=60, temperature=0.7)


def main(args: argparse.Namespace) -> None:
    results = read_results(args.out)
    for seed in args.seeds:
        if not any(result["seed"] == seed for result in results):
            for result in measured(args.model, folder_of(args), seed, args.asked, args.temperature):
                add_result(args.out, results, result)
    table(("way", "k", "right", "tokens", "stopped"), (
        (way, k, f"{right:.1%}", f"{tokens:.1f}", f"{stopped:.1f}")
        for way, points in curve(results).items() for k, (right, tokens, stopped) in points.items()))
    found = {}
    for one in ("alone 8", "greedy 1"):
        paired = Paired.of([result[one][0] for result in results], [result["calculator 8"][0] for result in results])
        found[f"best of 8 and {one}: {paired.wins} better, {paired.losses} worse, p {paired.p_better:.2g}"] = (
            paired.p_better < SIGNIFICANT)
    end_with(found)
