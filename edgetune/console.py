"""What a person sees: tables, a live progress line on a terminal, plain lines elsewhere.

Text is printed as it is: paths and messages may contain what rich would take for markup. On a terminal, lines are
wrapped between words; elsewhere a line stays one line, for programs that read it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .errors import printable

PLAIN_SECONDS = 5.0  # between plain lines where there is no terminal
BAR_WIDTH = 10  # leaves space for a step's numbers on a terminal of 80 columns
ACTIONS = {"go": "continues", "slower": "slower", "pause": "paused", "yield": "yields"}
"""The governor's decisions, as a person reads them."""


def mib(n: float) -> str:
    return f"{n / 2**20:.0f} MiB" if n >= 10 * 2**20 else f"{n / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def say(console: Console, line: str | Text, whole: bool = False) -> None:
    """Print one line. whole: as one that a person may copy, such as a command, which the terminal alone breaks."""
    console.print(line, highlight=False, markup=False, soft_wrap=whole or not console.is_terminal)


def note(text: str) -> Text:
    """A line that a person should notice."""
    return Text(text, style="yellow")


def table(title: str, columns: list[str], rows: Sequence[Sequence[str | Text]], right: tuple[int, ...] = (),
          whole: tuple[int, ...] = ()) -> Table:
    """right: columns that are aligned to the right; whole: columns, of ids, that no line break may divide."""
    made = Table(title=Text(title, style="bold") if title else None, title_justify="left", box=None, pad_edge=False,
                 header_style="dim", show_header=any(columns))
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i in right else "left", overflow="fold", no_wrap=i in whole)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return made


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """What a plan (as JSON) has traded."""
    return [f"traded: {text}" for text in plan["traded"]]


def checkpoint_line(disk: dict[str, Any]) -> str:
    """How much a run's checkpoints write, of `run.json`'s facts about the disk."""
    size = mib(disk["checkpoint_bytes"])
    if disk["checkpoint_every"] in ("never", "0"):
        return f"checkpoints: {size} each, written only when the run is stopped"
    return f"checkpoints every {disk['checkpoint_every']}: {size} each, at most {mib(disk['bytes_per_day'])} a day"


def pair_lines(pairs: Sequence[dict[str, str]], width: int) -> list[Text]:
    """Questions with the answers before and after, of which the second is green where it is the expected one."""
    lines = []
    for pair in pairs:
        before = printable(" ".join(pair["before"].split())[:width - 10])
        style = "green" if pair["right"] else "red"
        lines.append(Text.assemble("\n", (printable(pair["prompt"]), "bold"), "\n  before  ", before, "\n  after   ",
                                   (printable(pair["after"]), style)))
    return lines


class _Numbers(ProgressColumn):
    """The latest numbers of a run, and what the governor does to it."""

    def render(self, task: Task) -> Text:
        return Text.assemble(task.fields["numbers"], (task.fields["action"], "yellow"))


S = TypeVar("S", bound="_Live")


class _Live:
    """A bar of these columns on a terminal, shown within a `with`; elsewhere, and where quiet, none."""

    def __init__(self, console: Console, quiet: bool, *columns: ProgressColumn) -> None:
        self.console = console
        self.quiet = quiet
        self.live = not quiet and console.is_terminal
        self.bar = Progress(*columns, TimeRemainingColumn(compact=True), console=console)
        self.task: TaskID | None = None

    def __enter__(self: S) -> S:
        if self.live:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.live:
            self.bar.stop()


class TrainProgress(_Live):
    """Shows a run's events; give `event` to train.run as on_event. quiet: shows nothing (--json)."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        super().__init__(console, quiet, TextColumn("{task.completed}/{task.total}", style="bold", markup=False),
                         BarColumn(bar_width=BAR_WIDTH), _Numbers())
        self.action = ""  # what the governor does
        self.numbers = ""  # of the last step
        self.held_out = ""
        self.total = 0
        self.tokens = 0
        self.seconds = 0.0
        self.last = 0.0

    def event(self, e: dict[str, Any]) -> None:
        handlers = {"sweep": self._sweep, "rows": self._rows, "start": self._start, "resume": self._resume,
                    "eval": self._eval, "governor": self._governor, "step": self._step, "done": self._done,
                    "answers": self._answers, "answers_missing": self._missing}
        if not self.quiet and e["event"] in handlers:
            handlers[e["event"]](e)

    def _sweep(self, e: dict[str, Any]) -> None:
        """A run of several begins."""
        named = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in e["options"].items())
        say(self.console, Text(f"\nrun {e['number']} of {e['of']}: {named}", style="bold"))

    def _rows(self, e: dict[str, Any]) -> None:
        if e["truncated"] or e["skipped"]:
            say(self.console, note(f"{e['path']}: {e['truncated']} rows cut to {e['max_length']} tokens, "
                                   f"{e['skipped']} left out"))

    def _start(self, e: dict[str, Any]) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self.held_out = ""
        self.total = e["steps"]
        p = e["plan"]
        for line in (
                f"training {e['rows']} rows, {e['tokens']} tokens ({e['supervised']} supervised), {e['steps']} steps "
                f"with the kernels {e['isa']}",
                f"memory: at most {mib(p['peak_bytes'])} of {mib(p['budget_bytes'])} ({p['budget']}): buffers "
                f"{mib(p['arena_bytes'])}, weights {mib(p['weight_bytes'])}, the rest {mib(p['process_bytes'])}",
                *plan_lines(p), checkpoint_line(e["disk"])):
            say(self.console, line)
        if self.live:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task("", total=e["steps"], completed=e["done"], numbers="", action="")
            self.bar.start()

    def _eval(self, e: dict[str, Any]) -> None:
        self.held_out = f"held-out {e['loss']:.3f}"
        if not self.live:
            say(self.console, f"step {e['step']}/{self.total}  {self.held_out}")

    def _governor(self, e: dict[str, Any]) -> None:
        """The cause is a line above the bar, where it would not fit."""
        action = ACTIONS[e["action"]]
        if e["action"] == "slower":
            action += f", {e['threads']} thread{'s' if e['threads'] > 1 else ''}"
        self.action = "" if e["action"] == "go" else f"  {action}"
        say(self.console, f"step {e['step']}/{self.total}  {action}: {e['cause']}")
        self._update()

    def _resume(self, e: dict[str, Any]) -> None:
        for what in e["damaged"]:
            say(self.console, note(f"{what}: an older one is taken"))
        for change in e["changed"]:
            say(self.console, note(f"{change['name']} has changed: the steps done stay as they are"))
        say(self.console, f"resumes after step {e['step']}" if e["step"] else "starts again: no step was saved")

    def _step(self, e: dict[str, Any]) -> None:
        self.tokens += e["tokens"]
        self.seconds += e["seconds"]
        rate = self.tokens / max(self.seconds, 1e-9)
        parts = [f"loss {e['loss']:.3f}", self.held_out, f"{rate:.0f} tokens/s", f"{e['rss_mib']:.0f} MiB"]
        self.numbers = "  ".join(part for part in parts if part)
        self._update(completed=e["step"])
        if not self.live and (time.monotonic() - self.last > PLAIN_SECONDS or e["step"] == self.total):
            self.last = time.monotonic()
            left = (self.total - e["step"]) * e["seconds"]
            say(self.console, f"step {e['step']}/{self.total}  {self.numbers}  {duration(left)} left")

    def _update(self, completed: int | None = None) -> None:
        if self.live and self.task is not None:
            self.bar.update(self.task, completed=completed, numbers=self.numbers, action=self.action)

    def _done(self, _e: dict[str, Any]) -> None:
        if self.live:
            self.bar.stop()

    def _answers(self, e: dict[str, Any]) -> None:
        say(self.console, f"{e['rows']} held-out questions are answered, as before training and with the adapter")

    def _missing(self, e: dict[str, Any]) -> None:
        say(self.console, note(e["reason"]))


class StepProgress(_Live):
    """Shows long steps one after another; give `step` to what calls it with (what, done, total)."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        super().__init__(console, quiet, TextColumn("{task.description}", markup=False),
                         BarColumn(bar_width=BAR_WIDTH), TextColumn("{task.percentage:.0f} %"))
        self.what = ""
        self.began = 0.0
        self.last = 0.0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is None:
            self._complete()
        super().__exit__(kind, error, trace)

    def step(self, what: str, done: float, total: float) -> None:
        """Of the step `what`, `done` of `total` is done; a new name begins a new line."""
        if self.quiet:
            return
        now = time.monotonic()
        new = what != self.what
        if new:
            self.what = what
            self.began = now
        if self.live:
            if new:
                self._complete()
                self.task = self.bar.add_task(what, total=total)
            assert self.task is not None
            self.bar.update(self.task, completed=done, total=total)
        elif new or now - self.last > PLAIN_SECONDS:
            self.last = now
            left = (now - self.began) / done * (total - done) if done else 0.0
            rest = f"  {done / total:.0%}  {duration(left)} left" if done else ""
            say(self.console, f"{what}{rest}")

    def _complete(self) -> None:
        """What ended may not have said that it had."""
        if self.live and self.task is not None:
            self.bar.update(self.task, completed=self.bar.tasks[self.task].total)
