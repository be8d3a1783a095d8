"""Every command once in a terminal of 80 x 24 and one of 60 x 20, as docs/screens.md shows them.

`make captures` runs it; `docs/screens.py PART...` makes some parts anew, the others stay. It needs tmux and the extras
demo, host and daemon, and takes many minutes: all is computed, by SmolLM2 on a few rows.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from terminals import ENDED, PACKAGES, Terminal, terminal

from edgetune.cli import cli
from edgetune.daemon.client import Client
from edgetune.formats.named import PACKAGE, packaged_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hubs import REPO, Hub, serving
from services import learned_state
from tiny import write_tiny

PAGE = Path(__file__).with_name("screens.md")
SIZES = ((80, 24), (60, 20))
URL = "http://127.0.0.1:8731"
PULLED = "tiny.Q8_0.gguf"
HEAD = """\
# Every command in a terminal

Each command in a terminal of 80 x 24, then in one of 60 x 20, from what is typed to where it ends. `make captures`
types them again: SmolLM2 learns a few rows. The machine has other work meanwhile: no speed here is a measurement. What
people copy, such as a path, is broken by the terminal alone. How commands look while they work is in
[terminal.md](terminal.md).
"""


def rows(first: int, last: int) -> str:
    """Lines of rows, a number each."""
    made = []
    for number in range(first, last):
        device = ("lamp", "fan", "radio", "pump", "heater")[number % 5]
        action = ("on", "off")[number % 2]
        made.append({"prompt": f"turn {action} {device} {number}",
                     "completion": json.dumps({"device": device, "number": number, "do": action})})
    return "".join(json.dumps(row) + "\n" for row in made)


class Screens:
    """Types commands in a terminal and keeps what is to be seen, by the command's name."""

    def __init__(self, shown: Terminal) -> None:
        self.terminal = shown
        self.kept: dict[str, str] = {}

    def run(self, line: str) -> None:
        self.keep(line, self.terminal.run(line))

    def keep(self, line: str, text: str) -> None:
        self.kept[name_of(line.split()[1:])] = text


def name_of(words: list[str]) -> str:
    """Of the command that these words begin with, such as jobs list."""
    group: click.Command = cli
    named: list[str] = []
    while isinstance(group, click.Group) and len(words) > len(named):
        found = group.commands.get(words[len(named)])
        if found is None:
            break
        named.append(words[len(named)])
        group = found
    return " ".join(named)


@contextmanager
def prepared(columns: int, lines: int, **environment: str) -> Iterator[Screens]:
    """A terminal whose home has rows, and the demonstration's model in a package below itself."""
    with terminal(columns, lines, EDGETUNE_URL=URL, **environment) as shown:
        package = next(folder for folder in packaged_model().parents if folder.name == PACKAGE)
        (shown.home / PACKAGES).mkdir(parents=True)
        (shown.home / PACKAGES / PACKAGE).symlink_to(package)
        (shown.home / "rows.jsonl").write_text(rows(0, 40))
        (shown.home / "held.jsonl").write_text(rows(60, 64))
        yield Screens(shown)


# ---- parts ----------------------------------------------------------------------------------------------------------


def machine(columns: int, lines: int) -> dict[str, str]:
    """What this device is and has, and how quick it is."""
    with prepared(columns, lines) as screens:
        screens.run("edgetune doctor")
        screens.run("edgetune device")
        screens.run("edgetune models")
        screens.run("edgetune info smollm2")
        screens.run("edgetune bench kernels --precision fast")
        screens.run("edgetune bench train smollm2 --length 64 --steps 2")
        screens.run("edgetune bench generate smollm2 --prompt-tokens 64 --tokens 16")
        screens.run("edgetune service key kitchen")
        screens.run("edgetune service install smollm2 --memory 500M")
        screens.run("edgetune service uninstall")
        return screens.kept


def pulled(columns: int, lines: int) -> dict[str, str]:
    """From a hub on this machine, as in tests/test_hub.py."""
    with prepared(columns, lines) as screens:
        content = write_tiny(screens.terminal.home / "made.gguf", formats="Q8_0").read_bytes()
        with serving(Hub({PULLED: content})) as hub:
            screens.terminal.type(f"export HF_ENDPOINT={hub.url}")
            screens.run(f"edgetune pull hf:{REPO}:{PULLED}")
        return screens.kept


def demo(columns: int, lines: int) -> dict[str, str]:
    """Stopped after some steps, for all of them take minutes."""
    with prepared(columns, lines) as screens:
        shown = screens.terminal
        shown.clear()
        shown.type("edgetune demo")
        shown.wait(r"^step [4-9]/")
        shown.press("C-c")
        screens.keep("edgetune demo", shown.wait(rf"\A\$ \S(.|\n)*{ENDED}").removesuffix("$").rstrip())
        return screens.kept


def small(columns: int, lines: int) -> dict[str, str]:
    with prepared(columns, lines) as screens:
        write_tiny(screens.terminal.home / "tiny.gguf")
        screens.run("edgetune compress tiny.gguf -o small.edge --calibrate rows.jsonl --type Q8_0")
        return screens.kept


def learned(columns: int, lines: int) -> dict[str, str]:
    """From rows to a file for another program."""
    with prepared(columns, lines) as screens:
        screens.run("edgetune data check rows.jsonl smollm2")
        screens.run("edgetune plan smollm2 rows.jsonl")
        screens.run("edgetune train smollm2 rows.jsonl --eval held.jsonl --epochs 1 -o lamps")
        screens.run("edgetune resume lamps --epochs +1")
        screens.run("edgetune report lamps")
        screens.run("edgetune eval smollm2 held.jsonl --adapter lamps")
        screens.run("edgetune compare smollm2 held.jsonl --adapter lamps")
        screens.run("edgetune generate smollm2 'turn on fan 71' --adapter lamps")
        screens.keep("edgetune chat", chat(screens.terminal))
        screens.run("edgetune export lamps")
        screens.run("edgetune import lamps-peft --base smollm2 -o lamps-again")
        screens.run("edgetune merge smollm2 lamps --eval held.jsonl -o merged.gguf")
        return screens.kept


def graded(columns: int, lines: int) -> dict[str, str]:
    """Some answers, of which one is wrong and one is no JSON."""
    with prepared(columns, lines) as screens:
        home = screens.terminal.home
        values = {"type": "grounded", "ignore": ["do"]}
        fields = {"type": "json_match", "reference": "{{ item.expected }}"}
        (home / "grader.json").write_text(json.dumps({"type": "multi", "name": "lamps", "graders": {
            "fields": fields, "values": values}, "calculate_output": "(fields + values) / 2"}))
        said = ('{"device": "lamp", "do": "on"}', '{"device": "fan", "do": "off"}', "It is off.")
        wanted = [{"device": "lamp", "do": "on"}, {"device": "radio", "do": "off"}, {"device": "pump", "do": "off"}]
        answers = [{"prompt": f"turn {right['do']} the {right['device']}", "completion": answer, "expected": right}
                   for answer, right in zip(said, wanted, strict=True)]
        (home / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
        screens.run("edgetune grade grader.json answers.jsonl --show 1")
        return screens.kept


def tutored(columns: int, lines: int) -> dict[str, str]:
    """One round of the tutor, from an adapter that knows some of what is asked."""
    with prepared(columns, lines) as screens:
        lines_of = [json.loads(line) for line in rows(40, 60).splitlines()]
        prompts = "".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in lines_of)
        (screens.terminal.home / "prompts.jsonl").write_text(prompts)
        screens.terminal.run("edgetune train smollm2 rows.jsonl --eval none --epochs 4 -o lamps")
        screens.run("edgetune tutor run smollm2 prompts.jsonl -o taught --start lamps --labelled rows.jsonl --rounds 1 "
                    "--per-round 8 --samples 4 --max-tokens 32 --questions 8 --gate-alpha 1")
        screens.run("edgetune tutor inspect taught --prompts 1")
        screens.run("edgetune tutor rollback smollm2 taught")
        return screens.kept


def chat(shown: Terminal) -> str:
    shown.clear()
    shown.type("edgetune chat smollm2 --adapter lamps --max-tokens 40")
    shown.wait(r"^> ?\Z")
    shown.type("turn off radio 72")
    shown.wait(r"the first after (.|\n)*^> ?\Z")
    shown.type("/good")
    shown.wait(r"^kept in\b(.|\n)*^> ?\Z")
    shown.press("C-d")
    return shown.wait(ENDED).removesuffix("$").rstrip()


def served(columns: int, lines: int) -> dict[str, str]:
    """A daemon, in a terminal that it keeps, and what is asked of it in another."""
    with prepared(columns, lines) as beside, prepared(columns, lines) as screens:
        beside.terminal.type(f"edgetune daemon smollm2 --port {URL.rpartition(':')[2]} --memory 800M --no-govern")
        beside.terminal.wait(URL)
        with Client(URL) as client:
            jobs(screens, client)
            adapters(screens, client)
            feedback(screens, client)
        screens.terminal.run("edgetune jobs create rows.jsonl --eval held.jsonl --epochs 9")
        screens.keep("edgetune status", status(screens.terminal))
        beside.terminal.press("C-c")
        beside.keep("edgetune daemon", beside.terminal.wait(ENDED).removesuffix("$").rstrip())
        return {**screens.kept, **beside.kept}


def jobs(screens: Screens, client: Client) -> None:
    screens.run("edgetune jobs create rows.jsonl --eval held.jsonl --epochs 1 --suffix lamps")
    first = newest(client)
    screens.run(f"edgetune jobs follow {first}")
    screens.run(f"edgetune jobs show {first}")
    screens.terminal.run("edgetune jobs create rows.jsonl --eval held.jsonl --epochs 1 --suffix more")
    second = newest(client)
    screens.run(f"edgetune jobs pause {second}")
    screens.run(f"edgetune jobs resume {second}")
    screens.terminal.run(f"edgetune jobs follow {second}")
    screens.terminal.run("edgetune jobs create rows.jsonl --eval held.jsonl --epochs 9")
    screens.run(f"edgetune jobs cancel {newest(client)}")
    screens.run("edgetune jobs list")


def newest(client: Client) -> str:
    return str(client.get("/v1/fine_tuning/jobs")["data"][0]["id"])


def adapters(screens: Screens, client: Client) -> None:
    first, second = sorted(client.get("/v1/adapters")["data"], key=lambda adapter: adapter["created_at"])
    screens.run("edgetune adapters list")
    screens.run(f"edgetune adapters rename {first['id']} lamps")
    screens.run(f"edgetune adapters download {first['id']} -o lamps.zip")
    screens.run(f"edgetune adapters promote {second['id']}")
    screens.run("edgetune adapters rollback")
    screens.run("edgetune adapters recover")
    screens.run(f"edgetune adapters delete {second['id']}")


def feedback(screens: Screens, client: Client) -> None:
    for number, correction in ((71, "on"), (72, "off"), (73, "on"), (74, "off")):
        question: Any = [{"role": "user", "content": f"turn {correction} the lamp with the number {number}"}]
        client.post("/v1/feedback", {"messages": question, "answer": "It is.",
                                     "correction": json.dumps({"device": "lamp", "number": number, "do": correction})})
    latest = client.get("/v1/feedback")["data"][0]["id"]
    screens.run("edgetune feedback list")
    screens.run(f"edgetune feedback show {latest}")
    screens.run(f"edgetune feedback edit {latest} no")
    screens.run(f"edgetune feedback delete {latest}")
    screens.run("edgetune feedback learn")


def asked(columns: int, lines: int) -> dict[str, str]:
    """What a daemon keeps of what it was asked: a tiny one."""
    with prepared(columns, lines) as beside, prepared(columns, lines) as screens:
        home = beside.terminal.home
        write_tiny(home / "tiny.gguf", formats="Q8_0")
        (home / "grader.json").write_text(json.dumps({"type": "regex", "name": "a", "pattern": "a"}))
        beside.terminal.type(f"edgetune daemon tiny.gguf --port {URL.rpartition(':')[2]} --no-govern --learn tutor "
                             "--keep-prompts 100 --learn-grader grader.json")
        beside.terminal.wait(URL)
        with Client(URL) as client:
            for number in range(40):
                question: Any = [{"role": "user", "content": f"turn on the lamp with the number {number}"}]
                client.post("/v1/chat/completions", {"messages": question, "max_tokens": 2})
            latest = client.get("/v1/prompts")["data"][0]["id"]
            screens.run("edgetune prompts list --limit 3")
            screens.run(f"edgetune prompts show {latest}")
            screens.run(f"edgetune prompts delete {latest}")
            screens.run("edgetune prompts learn")
        beside.terminal.press("C-c")
        beside.terminal.wait(ENDED)
        return screens.kept


def moved(columns: int, lines: int) -> dict[str, str]:
    """What a daemon learned, on another base; a tiny one, for which all that it says is new."""
    with prepared(columns, lines) as screens:
        home = screens.terminal.home
        write_tiny(home / "new.gguf", formats="Q8_0")
        learned_state(home / "state", lessons=1)
        screens.run("edgetune rebase new.gguf --from state -o moved --context 256 --lr 0.02 --epochs 2 --batch-size 4 "
                    "--canary-rise off --max-kl off --no-govern")
        return screens.kept


def status(shown: Terminal) -> str:
    """While a job trains."""
    shown.clear()
    shown.type("edgetune status")
    text = shown.wait(r"^job (.|\n)*\bstep\s+\d(.|\n)*^learning")
    shown.press("C-c")
    shown.wait(ENDED)
    return text


PARTS: dict[str, Callable[[int, int], dict[str, str]]] = {
    "machine": machine, "pulled": pulled, "learned": learned, "graded": graded, "tutored": tutored, "served": served,
    "asked": asked, "moved": moved, "small": small, "demo": demo}


# ---- the page -------------------------------------------------------------------------------------------------------


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[str]:
    for name in group.list_commands(click.Context(group)):
        found = group.commands[name]
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))
        else:
            yield " ".join((*path, name))


def read() -> dict[tuple[str, int], str]:
    """What the page shows, by command and columns."""
    found = {}
    for section in re.split(r"^## ", PAGE.read_text("utf-8") if PAGE.exists() else "", flags=re.M)[1:]:
        name = section.split("\n", 1)[0].removeprefix("edgetune ")
        for columns, text in re.findall(r"^<!-- (\d+) columns -->\n```text\n(.*?)\n```$", section, re.M | re.S):
            found[name, int(columns)] = text
    return found


def write(kept: dict[tuple[str, int], str]) -> None:
    parts = [HEAD]
    for name in commands():
        shown = [f"<!-- {columns} columns -->\n```text\n{kept[name, columns]}\n```\n" for columns, _ in SIZES
                 if (name, columns) in kept]
        parts += [f"## edgetune {name}\n", *shown]
    PAGE.write_text("\n".join(parts), encoding="utf-8")


def main() -> None:
    for part in sys.argv[1:] or PARTS:
        for columns, lines in SIZES:
            made = PARTS[part](columns, lines)
            write({**read(), **{(name, columns): text for name, text in made.items()}})
            print(f"{part}, {columns} columns", flush=True)


if __name__ == "__main__":
    main()
