"""What a person sees: tables, a live progress line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 5.0  # between plain lines where there is no terminal


def mib(n: float) -> str:
    return f"{n / 2**20:.0f} MiB" if n >= 10 * 2**20 else f"{n / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def table(title: str, columns: list[str], rows: Sequence[Sequence[str | Text]], right: tuple[int, ...] = ()) -> Table:
    made = Table(title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False,
                 header_style="dim", show_header=any(columns))
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """What a plan (as JSON) has traded."""
    return [f"traded: {text}" for text in plan["traded"]]


S = TypeVar("S", bound="_Live")


class _Live:
    """A bar of these columns on a terminal, shown within a `with`; elsewhere, and where quiet, none."""

    def __init__(self, console: Console, quiet: bool, *columns: ProgressColumn) -> None:
        self.console, self.quiet = console, quiet
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
        super().__init__(console, quiet, TextColumn("[bold]step {task.completed}/{task.total}"),
                         BarColumn(bar_width=24), TextColumn("{task.fields[numbers]}"))
        self.pace, self.numbers = "", ""  # what the governor does, and the last step's
        self.total, self.held_out, self.tokens, self.seconds, self.last = 0, "", 0, 0.0, 0.0

    def event(self, e: dict[str, Any]) -> None:
        if self.quiet:
            return
        if e["event"] == "start":
            self._start(e)
        elif e["event"] == "resume":
            self._resume(e)
        elif e["event"] == "eval":
            self.held_out = f"held-out {e['loss']:.3f}"
            if not self.live:
                self.console.print(f"step {e['step']}/{self.total}  {self.held_out}", highlight=False, soft_wrap=True)
        elif e["event"] == "governor":
            self._governor(e)
        elif e["event"] == "step":
            self._step(e)
        elif e["event"] == "done" and self.live:
            self.bar.stop()

    def _start(self, e: dict[str, Any]) -> None:
        self.total = e["steps"]
        self.console.print(f"training {e['rows']} rows, {e['tokens']} tokens ({e['supervised']} supervised), "
                           f"{e['steps']} steps on row {e['isa']}", highlight=False, soft_wrap=True)
        p, disk = e["plan"], e["disk"]
        lines = [f"memory: arena {mib(p['arena_bytes'])}, weights {mib(p['weight_bytes'])}, rest "
                 f"{mib(p['process_bytes'])}; whole process at most {mib(p['peak_bytes'])} of {mib(p['budget_bytes'])} "
                 f"({p['budget']})", *plan_lines(p),
                 f"--checkpoint-every {disk['checkpoint_every']}: {mib(disk['checkpoint_bytes'])} each, at most "
                 f"{mib(disk['bytes_per_day'])} a day"]
        for line in lines:
            self.console.print(line, highlight=False, soft_wrap=True)
        if self.live:
            self.task = self.bar.add_task("", total=e["steps"], completed=e["done"], numbers="")

    def _governor(self, e: dict[str, Any]) -> None:
        threads = f"{e['threads']} thread{'s' if e['threads'] > 1 else ''}"
        words = {"go": "going on", "slower": f"slower, {threads}", "pause": "paused",
                 "yield": "giving way"}[e["action"]]
        self.pace = f"[yellow]{words}: {escape(e['cause'])}[/]" if e["action"] != "go" else ""
        if self.live and self.task is not None:
            self.bar.update(self.task, numbers=_joined(self.numbers, self.pace))
        elif not self.live:
            self.console.print(f"step {e['step']}/{self.total}  {words}: {e['cause']}", highlight=False, soft_wrap=True,
                               markup=False)

    def _resume(self, e: dict[str, Any]) -> None:
        lines = [f"[yellow]{what}: an older one is taken[/]" for what in e["damaged"]]
        lines += [f"[yellow]{c['name']} has changed: the steps done stay as they are[/]" for c in e["changed"]]
        lines.append(f"goes on after step {e['step']}" if e["step"] else "begins again: no step was saved")
        for line in lines:
            self.console.print(line, highlight=False, soft_wrap=True)

    def _step(self, e: dict[str, Any]) -> None:
        self.tokens += e["tokens"]
        self.seconds += e["seconds"]
        rate = self.tokens / max(self.seconds, 1e-9)
        self.numbers = numbers = _joined(f"loss {e['loss']:.3f}", self.held_out, f"{rate:.0f} tokens/s",
                                         f"{e['rss_mib']:.0f} MiB")
        if self.live and self.task is not None:
            self.bar.update(self.task, completed=e["step"],
                            numbers=_joined(numbers, self.pace))
        elif time.monotonic() - self.last > PLAIN_SECONDS or e["step"] == self.total:
            self.last = time.monotonic()
            left = (self.total - e["step"]) * e["seconds"]
            self.console.print(f"step {e['step']}/{self.total}  {numbers}  {duration(left)} left", highlight=False,
                               soft_wrap=True)


class StepProgress(_Live):
    """Shows long steps one after another; give `step` to what calls it with (what, done, total)."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        super().__init__(console, quiet, TextColumn("{task.description}"), BarColumn(bar_width=24),
                         TextColumn("{task.percentage:.0f} %"))
        self.what, self.began, self.last = "", 0.0, 0.0

    def step(self, what: str, done: float, total: float) -> None:
        """Of the step `what`, `done` of `total` is done; a new name begins a new line."""
        if self.quiet:
            return
        now = time.monotonic()
        if new := what != self.what:
            self.what, self.began = what, now
        if self.live:
            if new:
                if self.task is not None:
                    self.bar.update(self.task, completed=self.bar.tasks[self.task].total)
                self.task = self.bar.add_task(what, total=total)
            assert self.task is not None
            self.bar.update(self.task, completed=done, total=total)
        elif new or now - self.last > PLAIN_SECONDS:
            self.last = now
            left = (now - self.began) / done * (total - done) if done else 0.0
            rest = f"  {done / total:.0%}  {duration(left)} left" if done else ""
            self.console.print(f"{what}{rest}", highlight=False, soft_wrap=True)


def _joined(*parts: str) -> str:
    return "  ".join(part for part in parts if part)
