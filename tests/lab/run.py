"""Runs a program of the lab: what measures, or proves with kills, faults and hours, what a test of the suite cannot.

    python tests/lab/run.py                        # lists all
    python tests/lab/run.py crash --kills 3        # runs one; --help says what it does, and its options

A program is a module of this folder with `options(parser)` and `main(args)`, a comparison of `comparisons.py`, or
tests.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:
    sys.path[0] = str(TESTS)  # in place of this folder, whose modules are `lab.NAME`


@dataclass(frozen=True)
class Program:
    """takes: how long. needs: what is to be there before. tests: words of pytest, if it is tests. packages: of PyPI, in
    an environment of its own in front of all that this Python has.
    """

    what: str
    takes: str
    needs: str = ""
    tests: str = ""
    packages: str = ""


DATA = "rows of make data"
MINILM = "edgetune pull minilm"
PROGRAMS = {
    # must always hold
    "kill": Program("a training killed at random moments ends in the same bytes", "minutes"),
    "kills": Program("commands that write and jobs of the daemon, killed and run again", "many minutes"),
    "crash": Program("the daemon killed at random moments: all that it accepted is there", "minutes"),
    "faults": Program("the n-th open, write, sync, rename, thread or allocation of an action fails", "an hour", "",
                      "-n 0 -s -m '' test_faults.py"),
    "fuzz": Program("random damage to models and to a daemon's state", "minutes"),
    "fuzz-daemon": Program("random requests: none breaks the daemon", "minutes"),
    "schema": Program("schemathesis over the daemon's own OpenAPI", "minutes", "", "-m '' daemon/test_schema.py"),
    "load": Program("32 clients chat with a daemon that trains and promotes", "7 minutes"),
    "memory": Program("peaks as planned and as measured, budgets, 1.1 billion weights in 350M", "many minutes"),
    "planted": Program("60 faults planted in edgetune, and how many of them the quick tests find", "an hour"),
    "pressure": Program("another process takes the memory of a training in a cgroup", "minutes", "root",
                        "-n 0 -m '' training/test_throttle.py"),
    "learning": Program("what trainings are to reach; EDGETUNE_TEST_SEED, EDGETUNE_ISA", "many minutes", "",
                        "-m learning"),
    "service": Program("the unit in a systemd of its own, over a copy of this system", "a minute", "root"),
    "pieces": Program("100,000 pieces of feedback in a bounded daemon", "minutes", MINILM),
    "gate": Program("how often the gate lets through what is no better, simulated and in a daemon", "minutes",
                    f"{DATA}, {MINILM}"),
    "life": Program("a daemon learns from rounds of corrections and refuses wrong ones", "an hour", DATA),
    "rollout": Program("adapters rolled out to 50 simulated devices in rings, bad ones among them", "half an hour"),
    "home-assistant": Program("a real Home Assistant, its states after 30 sentences", "minutes",
                              "root; a network the first time"),
    # compared with others
    "snips": Program("Snips by edgetune and by PEFT in fp32: loss, speed, memory", "minutes", DATA),
    "parity": Program("perplexity and answers, compared with llama.cpp", "minutes", DATA,
                      "-n 0 -s -m '' models/test_parity.py"),
    "speed": Program("training speed, compared with PEFT in fp32, bf16, compiled bf16 and NF4", "many minutes"),
    "big": Program("writes large random models in Q4_0, in little memory", "a minute"),
    "families5": Program("all families compared with transformers 5, which alone has some", "2 minutes",
                         "a network the first time", "models/test_model.py compress/test_families.py "
                         "adapters/test_peft.py::test_export_gives_peft_the_same_logits", "transformers>=5.24,<6"),
    "flower": Program("the carrier by Flower, with Flower's own processes", "minutes", "a network the first time",
                      "-n 0 parts/fleet/test_flower_apps.py", "flwr[simulation]>=1.42,<1.43"),
    # what is learned
    "recipes": Program("small data sets trained without an option, answered freely and held to their schema", "an hour",
                       f"{DATA} for snips"),
    "methods": Program("training methods from the same start on sums and Snips", "an hour", f"{DATA} for snips"),
    "families": Program("adapter families on Snips, a learning rate each", "hours", DATA),
    "preferences": Program("rates and betas of dpo, kto and orpo on two tasks", "hours", DATA),
    "encoder": Program("MiniLM learns Snips", "minutes", f"{DATA}, {MINILM}"),
    "labels": Program("labels from few rows by MiniLM, beside TF-IDF", "minutes", f"{DATA}, {MINILM}"),
    "decisions": Program("typed questions answered with probabilities, by edgetune and by plain ways", "hours",
                         f"{DATA}, {MINILM}"),
    "unseen-options": Program("options that no row taught, told by their texts in four ways", "minutes",
                              f"{DATA}, {MINILM}"),
    "corrections": Program("40 corrections and one training in three domains, 40 and 20 unseen asked after", "minutes"),
    "samples": Program("sums by one of k answers: accuracy against tokens", "minutes"),
    "tutor": Program("one round of the tutor, compared with its labelled rows alone", "minutes a seed", DATA),
    "compiled": Program("a home's prompt, compiled once, compared with its text in each request", "minutes", DATA),
    "routing": Program("how often a library chooses the right adapter", "minutes", f"{DATA}, {MINILM}"),
    "houses": Program("houses trained from their entities, asked a public benchmark", "an hour", f"{DATA}, {MINILM}"),
    "fleet": Program("devices that each know two kinds of rows learn all in rounds", "hours", DATA),
}


def show() -> None:
    print('make lab NAME=... ARGS="...", of which ARGS=--help says more:\n')
    for name, one in PROGRAMS.items():
        print(f"{name:15} {one.what} ({', '.join(filter(None, (one.takes, one.needs)))})")


def python_with(name: str, packages: str) -> str:
    """An interpreter of an environment in build/ that has these packages, and behind them all that this one has."""
    folder = TESTS.parent / "build" / name
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        [site] = folder.glob("lib/python3*/site-packages")
        (site / "parent.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
        subprocess.run([python, "-m", "pip", "install", "--quiet", packages], check=True)
        (folder / "made").touch()
    return str(python)


def main() -> None:
    if len(sys.argv) < 2:
        show()
        return
    name, *words = sys.argv[1:]
    if name not in PROGRAMS:
        sys.exit(f"there is no {name}; the names are {', '.join(PROGRAMS)}")
    program = PROGRAMS[name]
    if program.tests:
        import shlex
        python = python_with(name, program.packages) if program.packages else sys.executable
        sys.exit(subprocess.run([python, "-m", "pytest", *shlex.split(program.tests), *words], cwd=TESTS).returncode)
    parser, run, takes_rest = parser_of(name)
    args, rest = parser.parse_known_args(words)
    if rest and not takes_rest:
        parser.error(f"unknown: {' '.join(rest)}")
    args.rest = rest
    sys.exit(run(args))


def parser_of(name: str) -> tuple[argparse.ArgumentParser, Callable[[argparse.Namespace], object], bool]:
    """(the parser of a program, what runs it, whether it takes options that it does not know)"""
    module_name = name.replace("-", "_")
    is_module = Path(__file__).with_name(f"{module_name}.py").exists()
    module = import_module(f"lab.{module_name if is_module else 'learning'}")
    parser = argparse.ArgumentParser(prog=f"lab {name}", description=f"{PROGRAMS[name].what}.\n\n{module.__doc__}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    if is_module:
        module.options(parser)
        return parser, module.main, hasattr(module, "REST")
    comparison = import_module("lab.comparisons").COMPARISONS[name]
    module.add_options(comparison, name, parser)
    return parser, partial(module.compare, comparison), False


if __name__ == "__main__":
    main()
