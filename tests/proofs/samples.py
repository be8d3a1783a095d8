"""Sums with a verifier: how many are right by one of k answers, and for how many tokens.

    python tests/proofs/samples.py [--seeds 0,1,2] [--asked 60] [--temperature 0.7] [--out FILE] [--chart FILE]

A model that learned 60 sums (as of proofs/methods.py) answers others 16 times each. Of the first k answers one is
chosen: that of the majority, the likeliest, or the one that a calculator finds right. stopped: the tokens where no
further answer is made once none can change the choice. alone: as many tokens in one answer, which is told "Wait" and
asked again until they are spent; its last number counts. greedy: the likeliest answer, which ends by itself.

--chart writes an SVG of the accuracy against the tokens. Exits with 1 unless the best of 8 answers by the calculator
is right more often than one answer, however many tokens it has (paired, one-sided, p < 0.05).
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import write_lines
from peers.snips import model_path
from proofs.compared import BUILD, SIGNIFICANT, add_result, edgetune, read_results
from proofs.methods import sums

from edgetune.evaluation.acceptance import Paired
from edgetune.evaluation.chosen import Chooser, LikeliestAnswer, Majority, Preferred, chosen, part_of
from edgetune.evaluation.graders.base import read_grader
from edgetune.evaluation.judge import same
from edgetune.runs.chart import HEIGHT, STYLES, WIDTH, Chart, Line, figure
from edgetune.runs.page import STYLE, Html, element, join
from edgetune.serving.draws import DrawnAnswer, Draws
from edgetune.serving.llama import LlamaModel

COUNTS = (1, 2, 4, 8, 16)
LONGER = (1, 8)  # of COUNTS: as many tokens in one answer
LEARNED = 60
CALCULATOR = read_grader({"type": "numeric", "name": "sum", "reference": "{{ item.completion }}"})
WAIT = "\nWait, let me add again. The sum is "
NUMBER = re.compile(r"\d+")
MOST = 12  # tokens of an answer
Result = dict[str, Any]


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


def alone(served: LlamaModel, prompt: str, item: dict[str, str], first: DrawnAnswer, temperature: float,
          budgets: dict[int, float]) -> Result:
    """The first answer, continued until as many tokens are spent as k answers have in the mean: [right, tokens]."""
    text = first.text
    tokens = first.tokens + 1
    found: Result = {}
    for k, budget in budgets.items():
        while tokens < budget:
            [more] = Draws(served, prompt + text + WAIT, 1, temperature=temperature, max_tokens=MOST, seed=tokens)
            text += WAIT + more.text
            tokens += served.count(WAIT) + more.tokens + 1
        found[f"alone {k}"] = [same(item["completion"], part_of(text, NUMBER)), tokens, tokens]
    return found


def measured(model: Path, folder: Path, seed: int, asked: int, temperature: float) -> list[Result]:
    rows = sums(seed)[660 : 660 + asked]
    found = []
    with LlamaModel(model, threads=1, context=1024) as served:
        served.load_adapter(adapter_of(model, folder, seed), "sums")
        served.use("sums")
        prompts = [str(served.render([{"role": "user", "content": row["prompt"]}], None, "sums")) for row in rows]
        drawn = []
        for i, prompt in enumerate(prompts):
            first = (seed * asked + i) * max(COUNTS)
            made = sorted(Draws(served, prompt, max(COUNTS), temperature=temperature, max_tokens=MOST, seed=first),
                          key=lambda each: each.index)
            drawn.append(made)
        each = mean(one.tokens + 1 for made in drawn for one in made)
        budgets = {k: k * each for k in LONGER}
        for row, prompt, made in zip(rows, prompts, drawn, strict=True):
            [greedy] = Draws(served, prompt, 1, max_tokens=MOST)
            found.append({"seed": seed, "prompt": row["prompt"], **by_samples(made, row),
                          **alone(served, prompt, row, made[0], temperature, budgets),
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


def drawing(found: dict[str, dict[int, tuple[float, float, float]]]) -> str:
    """The curves as one SVG."""
    names = {"calculator": "best of k by a calculator", "majority": "majority of k", "likelihood": "likeliest of k",
             "alone": "one answer of as many tokens, told to wait", "greedy": "the likeliest answer, alone"}
    lines = [Line(name, [(tokens, 100 * right) for right, tokens, _ in found[way].values()], STYLES[i], dots=True)
             for i, (way, name) in enumerate(names.items())]
    made = str(figure(Chart("Sums that are right", "tokens of all answers", "% right", lines)))
    svg = made[made.index("<svg"):made.index("<ul")]
    inner = svg[svg.index(">") + 1:svg.rindex("</svg>")]
    legend = join(part for line, y in zip(lines, range(HEIGHT + 8, HEIGHT + 96, 16), strict=False) for part in (
        element("g", element("path", d=f"M46 {y}H74"), class_=line.style.classes),
        element("text", line.name, x=80, y=y + 4)))
    return element("svg", element("style", Html(STYLE.read_text("utf-8"))), Html(inner), legend,
                   xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {HEIGHT + 16 * len(lines) + 8}") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--asked", type=int, default=60)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--folder", type=Path, default=BUILD / "samples")
    parser.add_argument("--out", type=Path, default=BUILD / "samples.jsonl")
    parser.add_argument("--chart", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    results = read_results(args.out)
    for seed in map(int, args.seeds.split(",")):
        if not any(result["seed"] == seed for result in results):
            for result in measured(args.model or model_path(), args.folder, seed, args.asked, args.temperature):
                add_result(args.out, results, result)
    found = curve(results)
    for way, points in found.items():
        for k, (right, tokens, stopped) in points.items():
            print(json.dumps({"way": way, "k": k, "right": round(right, 3), "tokens": round(tokens, 1),
                              "stopped": round(stopped, 1)}))
    if args.chart:
        args.chart.write_text(drawing(found), "utf-8")
    tests = [Paired.of([result[one][0] for result in results], [result["calculator 8"][0] for result in results])
             for one in ("alone 8", "greedy 1")]
    for one, paired in zip(("alone 8", "greedy 1"), tests, strict=True):
        print(json.dumps({"against": one, "questions": paired.rows, "better": paired.wins, "worse": paired.losses,
                          "p": paired.p_better}))
    sys.exit(any(paired.p_better >= SIGNIFICANT for paired in tests))


if __name__ == "__main__":
    main()
