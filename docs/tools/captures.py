"""Draws pictures of what commands show at a terminal, in colour: docs/img/*.svg. Run it where the demo's package is.

    python docs/tools/captures.py RUNS

Each command of COMMANDS is typed in examples/home. Three are not run again: the two trainings are made before, with
`-o RUNS/demo` and `-o RUNS/home`, and their ends are drawn from run.json; `edgetune status --json > RUNS/status.json`
is of a daemon that has learned. The pictures load no font.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.terminal_theme import TerminalTheme

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from commands import run  # noqa: E402
from recorded import recording  # noqa: E402

from edgetune.cli.app import show  # noqa: E402
from edgetune.cli.learn import (  # noqa: E402
    demo_lines,
    result_lines,
    try_lines,
)
from edgetune.cli.status import view  # noqa: E402
from edgetune.formats.named import packaged_model  # noqa: E402
from edgetune.runs.result import Result  # noqa: E402

IMAGES = ROOT / "docs" / "img"
COMMANDS = {
    "demo": "edgetune demo",
    "train": "edgetune train smollm2 rows.jsonl --eval test.jsonl -o home "
             '--system "Turn the request into a JSON action."',
    "plan": 'edgetune plan smollm2 rows.jsonl --eval test.jsonl --device "Raspberry Pi 5" --memory 300M',
    "data-check": "edgetune data check rows.jsonl smollm2 --eval test.jsonl",
    "status": "edgetune status",
}
"""Of each picture: its title, and what is typed."""
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.S).replace("Fira Code, ", "")
DARK = TerminalTheme((24, 27, 33), (214, 219, 226), [
    (60, 66, 76), (244, 112, 103), (87, 196, 109), (224, 175, 70), (108, 164, 248), (200, 140, 240), (86, 200, 210),
    (214, 219, 226)])
"""Its background stands out on a white page and on a dark one."""


def result_of(folder: Path) -> Result:
    return Result(Path(folder.name), json.loads((folder / "run.json").read_text()))


def demo(runs: Path) -> None:
    result = result_of(runs / "demo")
    show(False, {}, *demo_lines(result, result.seconds))


def train(runs: Path) -> None:
    result = result_of(runs / "home")
    show(False, {}, *result_lines(result), *try_lines(result, packaged_model(), result.folder))


def status(runs: Path) -> None:
    show(False, {}, view(json.loads((runs / "status.json").read_text())))


MADE_BEFORE = {"demo": demo, "train": train, "status": status}


def main(runs: Path, names: list[str]) -> None:
    os.chdir(ROOT / "examples" / "home")
    for name in names or COMMANDS:
        with recording() as terminal:
            if name in MADE_BEFORE:
                MADE_BEFORE[name](runs)
            else:
                run(*shlex.split(COMMANDS[name])[1:])
            terminal.print()  # the last line would lose its descenders
            svg = terminal.export_svg(title=f"$ {COMMANDS[name]}", code_format=FORMAT, unique_id=name, theme=DARK)
        (IMAGES / f"{name}.svg").write_text(re.sub(r"[ \t]+$", "", svg, flags=re.M), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2:])
