"""The tutor's one round beside the labelled rows alone, learned at the same rate for as many steps.

--labelled, --unseen: rows with prompt and completion; --prompts: prompts, whose completions, if they have any, are not
learned and say how many of the chosen answers are right. A {seed} in a path is replaced, so that each seed may have
rows of its own. Both adapters answer the unseen rows through our own engine, by the likeliest tokens. Where the tutor
publishes nothing, or the labelled rows alone, one adapter counts for both. Results are added to --out, and what it has
already is not measured again, so that the proof can run in pieces.

Exits with 1 unless the tutor has more right answers, with p below 0.05 over all seeds by the sign test.
"""

import shlex
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from json_lines import read_lines, write_lines
from lab.common import Result, add_usual, answered, edgetune, end_with, folder_of, measure_missing, table, wins

from edgetune.adapters.store import read_run
from edgetune.data.question import question_key
from edgetune.evaluation.acceptance import Paired
from edgetune.evaluation.judge import same
from edgetune.parts.tutor.rounds.folder import Round
from edgetune.parts.tutor.rounds.results import Chosen, Published


def measured(args: Namespace, seed: int) -> Result:
    folder = folder_of(args) / str(seed)
    folder.mkdir(exist_ok=True)
    labelled, prompts, unseen = (Path(str(path).format(seed=seed))
                                 for path in (args.labelled, args.prompts, args.unseen))
    rows = read_lines(prompts)
    bare = write_lines(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows])
    common = ["--seed", seed, "--system", args.system, "--no-govern", "--json"]
    out = folder / "tutor"
    edgetune("tutor", args.model, bare, "-o", out, "--labelled", labelled, *common, *shlex.split(args.options))
    first = edgetune("tutor", "inspect", out, "--json")["rounds"][0]
    round = Round(out, 1)
    published = round.read(Published)
    is_round = published is not None and published.adapter.endswith("train")
    steps = read_run(out)["steps"] if published else first["labels"]["steps"]
    alone = folder / "labels" if is_round or not published else out
    if not alone.exists():
        edgetune("train", args.model, labelled, "-o", alone, "--eval", "none", "--no-answers", "--steps", steps, "--lr",
                 "2e-3", "--batch-size", 8, "--anchors", 5, *common)
    chosen = round.refit.read(Chosen) or round.read(Chosen)
    answers = {question_key(row): row.get("completion", "") for row in rows}
    labels = [(answers[one.key], one.label) for one in chosen.choices if one.label] if chosen else []
    right = {name: right_in(args, folder, adapter, unseen)
             for name, adapter in (("labels", alone), ("tutor", out if is_round else alone))}
    return {"steps": steps, "prompts": len(rows), "chosen": len(labels),
            "chosen_right": sum(same(*pair) for pair in labels), "adapter": published.adapter if published else "",
            "gate": first.get("gate", {}).get("reason", ""), "seconds": first["seconds"], **right}


def right_in(args: Namespace, folder: Path, adapter: Path, unseen: Path) -> list[int]:
    """1 for each row that the adapter answers rightly."""
    rows = read_lines(unseen)
    said = answered(args.model, folder / "answers.jsonl", adapter, rows, 96, "--system", args.system)
    return [int(same(row["completion"], text)) for row, text in zip(rows, said, strict=True)]


def options(parser: ArgumentParser) -> None:
    """options: of the tutor."""
    add_usual(parser, "tutor.jsonl", seeds=[0, 1, 2], system="", options="")
    for name in ("labelled", "prompts", "unseen"):
        parser.add_argument(f"--{name}", type=Path, required=True)


def main(args: Namespace) -> None:
    results = measure_missing(args, ({"seed": seed} for seed in args.seeds), partial(measured, args),
                              lambda result: f"seed {result['seed']}: {result['seconds']:.0f} s")
    found = [(result, Paired.of(result["labels"], result["tutor"])) for result in results]
    table(("seed", "labels", "tutor", "better, worse", "chosen, right of them", "published", "minutes"), (
        [result["seed"], *(f"{sum(result[name]) / paired.rows:.1%}" for name in ("labels", "tutor")),
         f"{paired.wins}, {paired.losses}", f"{result['chosen']} of {result['prompts']}, {result['chosen_right']}",
         result["adapter"] or "nothing", f"{result['seconds'] / 60:.1f}"] for result, paired in found))
    pooled = sum((paired for _, paired in found), Paired(0, 0))
    end_with({f"better than the labelled rows alone: {pooled.wins} better, {pooled.losses} worse, p "
              f"{pooled.p_two_sided:.2g}": wins(pooled)})
