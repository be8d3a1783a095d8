"""What a person sees: lines and tables.

Paths and messages may contain what rich would take for markup, and are printed as they are. On a terminal, lines are
wrapped between words; in a pipe or file a line stays one line, for programs that read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from .errors import escaped, printable
from .errors import size_text as size_text

BEFORE = "  before  "
AFTER = "  after   "
UNITS = (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0), ("second", 1.0))
ACTIONS = {"go": "continues", "slower": "slower", "pause": "paused", "yield": "yields"}
"""The governor's decisions, as a person reads them."""


class Terminal(Console):
    """A console on which no foreign text, of a model or a file, can steer the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escaped(segment.text), segment.style)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def about(seconds: float) -> str:
    """A time in the largest unit of which there are at least one and a half."""
    for unit, size in UNITS:
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}s"
    return "a second"


class Copyable(str):
    """A line that a person may copy, such as a command or a path: the terminal alone breaks it."""


def say(console: Console, line: str | Text, whole: bool = False) -> None:
    """Print one line. whole: as `Copyable` ones."""
    whole = whole or isinstance(line, Copyable) or not console.is_terminal
    console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=whole)


def note(text: str) -> Text:
    """A line that a person should notice."""
    return Text(text, style="yellow")


def table(title: str, columns: list[str], rows: Sequence[Sequence[str | Text]], right: tuple[int, ...] = (),
          whole: tuple[int, ...] = (), tight: bool = False) -> Table:
    """right: columns that are aligned to the right; whole: columns, of ids, that no line break may divide.
    tight: for a narrow terminal, a word of the heads a line, and one space between columns.
    """
    made = Table(title=Text(title, style="bold") if title else None, title_justify="left", box=None, pad_edge=False,
                 header_style="dim", show_header=any(columns), collapse_padding=tight)
    for i, column in enumerate(columns):
        head = column.replace(" ", "\n") if tight else column
        made.add_column(head, justify="right" if i in right else "left", overflow="fold", no_wrap=i in whole)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return made


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """What a plan (as JSON) has traded."""
    return [f"traded: {text}" for text in plan["traded"]]


def tokens_text(tokens: int, computed: int) -> str:
    """Tokens of rows, and those to compute, which are estimated: what rows of a batch begin with alike counts once."""
    return f"{tokens} tokens in rows, {'' if computed == tokens else 'about '}{computed} computed"


def start_lines(e: dict[str, Any]) -> list[str]:
    """What a run begins with, of its event "start"."""
    p = e["plan"]
    learned = (f"training {e['rows']} rows: {tokens_text(e['tokens'], e.get('computed', e['tokens']))}, "
               f"{e['supervised']} supervised")
    if p.get("live"):
        learned = (f"training on answers to {e['rows']} prompts of {e['tokens']} tokens in all, "
                   f"{p['live']} answers in progress at a time")
    return [f"{learned}; {e['steps']} steps with the kernels {e['isa']}",
            memory_line(e), *plan_lines(p)]


def memory_line(e: dict[str, Any]) -> str:
    """The memory of training and, where questions are answered after it, of answers."""
    answers = f", answers about {size_text(e['answers_bytes'])}" if e.get("answers_bytes") else ""
    return (f"memory: training at most {size_text(e['plan']['peak_bytes'])}{answers}, limit "
            f"{size_text(e['plan']['budget_bytes'])} ({e['plan']['budget']})")


def checkpoint_line(disk: dict[str, Any], seconds: float) -> str:
    """The bytes that checkpoints write in a run of this time, of `run.json`'s facts about the disk."""
    nbytes = disk["checkpoint_bytes"]
    count = int(seconds / disk["checkpoint_seconds"])
    every = disk["checkpoint_every"]
    return f"a checkpoint every {every}: {size_text(nbytes)} each, about {size_text(count * nbytes)} in this run"


def shortened(text: str, most: int) -> str:
    """A line of at most that many characters, which ends after a word, with dots where something is left out."""
    if len(text) <= most:
        return text
    whole, space, _ = text[:most].rpartition(" ")
    return f"{whole if space else text[:most - 1]}…"


def headline(parts: Sequence[str], style: str) -> Text:
    """A verdict in one line: its first words in colour, then what was measured."""
    head, *rest = parts
    return Text.assemble((head, f"bold {style}"), *(f"  {part}" for part in rest))


def pair_lines(pairs: Sequence[dict[str, str]], console: Console) -> list[Text]:
    """Questions with the answers before and after, of which the second is green where it is the expected one."""
    lines = []
    room = console.width - len(AFTER)
    for pair in pairs:
        before = shortened(printable(" ".join(pair["before"].split())), room)
        after = Text(printable(pair["after"]), "green" if pair["right"] else "red")
        if console.is_terminal:
            after = Text("\n" + " " * len(AFTER)).join(after.wrap(console, room))
        lines.append(Text.assemble("\n", (printable(pair["prompt"]), "bold"), (f"\n{BEFORE}{before}", "dim"),
                                   f"\n{AFTER}", after))
    return lines
