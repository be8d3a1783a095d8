"""Progress of work: live on a terminal, in plain lines for other readers, in JSON lines for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .console import ACTIONS, checkpoint_line, duration, note, say, size_text, start_lines

PLAIN_SECONDS = 5.0  # between plain lines where there is no terminal
JSON_SECONDS = 1.0  # between JSON lines of steps
SURE_SECONDS = 3.0  # of steps, after which what they took says more than their estimates
BAR_WIDTH = 10  # leaves space for a step's name on a terminal of 60 columns
WIDEST_BAR = 30


@dataclass
class Pace:
    """What the steps of a run took so far. done, total: steps, those of earlier legs too."""

    total: int = 0
    done: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def step(self, e: dict[str, Any]) -> None:
        self.done = e["step"]
        self.steps += 1
        self.tokens += e["tokens"]
        self.seconds += e["seconds"]

    @property
    def rate(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def left(self) -> float:
        """Seconds, without pauses."""
        return self.seconds / max(self.steps, 1) * (self.total - self.done)


P = TypeVar("P", bound="TrainProgress")


class TrainProgress:
    """Shows a run's events within a `with`; give `event` to train.run as on_event.

    On a terminal its last lines are step and time left; the latest numbers; and why the run does not go as it could.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.pace = Pace()
        self.gained = ""  # by the last step
        self.memory = ""
        self.held_out = ""  # the last measurement
        self.hindered = ""  # what the governor does to it, and why
        self.since = (0, 0.0)  # the step and the time of that decision
        self.last = 0.0
        self.disk: dict[str, Any] | None = None  # what it writes, until that is said
        self.live: Live | None = None
        self.drawing: StepProgress | None = None  # of anchors, or of the tests by parts

    def __enter__(self: P) -> P:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._end_drawing(kind is None)
        self._stop()

    def event(self, e: dict[str, Any]) -> None:
        handlers = {"sweep": self._sweep, "rows": self._rows, "start": self._start, "resume": self._resume,
                    "anchors": self._anchors, "anchors_missing": self._no_anchors, "expect": self._expect,
                    "folds": self._folds, "eval": self._eval, "governor": self._governor, "step": self._step}
        if e["event"] in handlers:
            handlers[e["event"]](e)
        elif e["event"] == "done":
            self._say_hindered()
            self._stop()
        elif "says" in e:  # of a part
            self._stop()
            say(self.console, e["says"])
        elif e["event"] == "round":
            say(self.console, Text(f"\nround {e['round']} of {e['rounds']}", style="bold"))
        elif e["event"] == "answers":
            say(self.console, f"{e['rows']} held-out questions are answered, as before training and with the adapter")
        elif e["event"] == "answers_missing":
            self._end_drawing(is_done=False)
            say(self.console, note(e["reason"]))

    # ---- the last lines of a terminal ---------------------------------------------------------------------------

    def _view(self) -> RenderableType:
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(Text(f"step {self.pace.done}/{self.pace.total}", style="bold"),
                     ProgressBar(max(self.pace.total, 1), self.pace.done, min(self.console.width // 3, WIDEST_BAR)),
                     Text(f"{duration(self.pace.left)} left" if self.pace.steps else ""))
        hindered = [Text(self.hindered, style="yellow")] if self.hindered else []
        return Group(line, Text(self.numbers), *hindered)

    @property
    def numbers(self) -> str:
        parts = [self.gained, self.held_out, *([f"{self.pace.rate:.0f} tokens/s", self.memory] if self.gained else [])]
        return "  ".join(part for part in parts if part)

    def _stop(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    # ---- events -------------------------------------------------------------------------------------------------

    def _sweep(self, e: dict[str, Any]) -> None:
        named = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in e["options"].items())
        say(self.console, Text(f"\nrun {e['number']} of {e['of']}: {named}", style="bold"))

    def _rows(self, e: dict[str, Any]) -> None:
        if e["truncated"] or e["skipped"]:
            say(self.console, note(f"{e['path']}: {e['truncated']} rows cut to {e['max_length']} tokens, "
                                   f"{e['skipped']} left out"))

    def _anchors(self, e: dict[str, Any]) -> None:
        if self.drawing is None:
            say(self.console, f"the base answers {e['of']} questions first, to stay as it is on unrelated text "
                              "(they are kept; --anchors 0: never)")
            self.drawing = StepProgress(self.console)
            self.drawing.start()
        self.drawing.step("answering", e["done"], e["of"])

    def _folds(self, e: dict[str, Any]) -> None:
        if self.drawing is None:
            say(self.console, f"all rows are learned; now {e['parts']} parts of them are answered by trainings on the "
                              "others, which tests it (Ctrl-C leaves it untested, --eval none: no tests)")
            self.drawing = StepProgress(self.console)
            self.drawing.start()
        self.drawing.step("testing", e["part"] - 1, e["parts"])

    def _end_drawing(self, is_done: bool) -> None:
        if self.drawing is not None:
            self.drawing.stop(is_done)
            self.drawing = None

    def _no_anchors(self, e: dict[str, Any]) -> None:
        self._end_drawing(is_done=False)
        say(self.console, note(f"nothing holds the base as it is on unrelated text: {e['reason']}"))

    def _start(self, e: dict[str, Any]) -> None:
        self._end_drawing(is_done=True)
        self._stop()
        self.pace = Pace(e["steps"], e["done"])
        self.gained = ""
        self.held_out = ""
        self.hindered = ""
        self.disk = e["disk"]
        for line in start_lines(e):
            say(self.console, line)
        if self.console.is_terminal:
            self.live = Live(console=self.console, get_renderable=self._view, refresh_per_second=4)
            self.live.start()

    def _expect(self, e: dict[str, Any]) -> None:
        say(self.console, f"before training, of {e['samples']} answers each to {e['prompts']} prompts "
                          f"{e['pass_at_1']:.0%} are right, and {e['pass_at_k']:.0%} of the prompts have a right one; "
                          f"mean reward {e['reward']:.3f}, the same for all answers to {e['frac_reward_zero_std']:.0%} "
                          "of the prompts")

    def _eval(self, e: dict[str, Any]) -> None:
        reward = e.get("metrics", {}).get("reward")
        self.held_out = f"held-out {e['loss']:.3f}" if reward is None else f"held-out reward {reward:.3f}"
        if not self.console.is_terminal:
            say(self.console, f"step {e['step']}/{self.pace.total}  {self.held_out}")

    def _governor(self, e: dict[str, Any]) -> None:
        """Shows a decision on a terminal while it lasts, and as a line when it is over."""
        action = ACTIONS[e["action"]]
        if e["action"] == "slower":
            action += f", {e['threads']} thread{'s' if e['threads'] > 1 else ''}"
        told = f"{action}: {e['cause']}"
        if not self.console.is_terminal:
            say(self.console, f"step {e['step']}/{self.pace.total}  {told}")
        self._say_hindered()
        self.hindered = "" if e["action"] == "go" else told
        self.since = (e["step"], time.monotonic())

    def _say_hindered(self) -> None:
        """A decision that is over, as a line above the last ones."""
        if self.live is not None and self.hindered:
            step, began = self.since
            lasted = duration(time.monotonic() - began)
            say(self.console, f"step {step}/{self.pace.total}  for {lasted} {self.hindered}")
        self.hindered = ""

    def _resume(self, e: dict[str, Any]) -> None:
        for what in e["damaged"]:
            say(self.console, note(f"{what}: an older one is taken"))
        for change in e["changed"]:
            say(self.console, note(f"{change['name']} has changed: the steps done stay as they are"))
        say(self.console, f"resumes after step {e['step']}" if e["step"] else "starts again: no step was saved")

    def _step(self, e: dict[str, Any]) -> None:
        self.pace.step(e)
        reward = e.get("metrics", {}).get("reward")
        self.gained = f"loss {e['loss']:.3f}" if reward is None else f"reward {reward:.3f}"
        self.memory = size_text(e["rss_mib"] * 2**20)
        if e["step"] == self.pace.total:
            self.held_out = ""  # until it is measured again
        interval = (self.disk or {}).get("checkpoint_seconds")
        seconds = self.pace.seconds + self.pace.left
        if self.disk and interval and seconds > interval:  # a shorter run writes none
            say(self.console, checkpoint_line(self.disk, seconds))
            self.disk = None
        if not self.console.is_terminal and (time.monotonic() - self.last > PLAIN_SECONDS
                                             or e["step"] == self.pace.total):
            self.last = time.monotonic()
            say(self.console, f"step {e['step']}/{self.pace.total}  {self.numbers}  {duration(self.pace.left)} left")


class Outlook:
    """The time left of work in several steps; each has a name and about how many seconds it takes, in order.

    What is yet to come is scaled by what the steps that have ended took compared with their estimates.
    """

    def __init__(self, steps: Sequence[tuple[str, float]]) -> None:
        self.steps = list(steps)
        self.place = -1  # the one that goes
        self.expected = 0.0  # seconds of those that have ended
        self.took = 0.0

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.steps)

    def begin(self, what: str, passed: float) -> None:
        """A step begins; passed: seconds of the one before. One that was not estimated belongs to the one before."""
        names = [name for name, _ in self.steps[self.place + 1:]]
        if self.place >= 0:
            self.took += passed
        if what in names:
            if self.place >= 0:
                self.expected += self.steps[self.place][1]
            self.place += names.index(what) + 1

    def left(self, current: float | None) -> float:
        """Seconds. current: of the step that goes, where that is known."""
        scale = self.took / self.expected if self.expected > SURE_SECONDS else 1.0
        later = sum(seconds for _, seconds in self.steps[self.place + 1:])
        if current is None:
            current = scale * self.steps[self.place][1] if self.place >= 0 else 0.0
        return current + scale * later


class LongSteps:
    """The long step that is done now, and the seconds left of it, where they are known."""

    what = ""
    began = 0.0
    left: float | None = None
    outlook: Outlook | None = None

    def note(self, what: str, done: float, total: float) -> bool:
        """Notes how far a step is. Returns whether it is another one than before."""
        now = time.monotonic()
        is_new = what != self.what
        if is_new:
            if self.outlook:
                self.outlook.begin(what, now - self.began)
            self.what = what
            self.began = now
        self.left = (now - self.began) / done * (total - done) if done else None
        return is_new


S = TypeVar("S", bound="StepProgress")


class StepProgress(LongSteps):
    """Shows long steps one after another within a `with`; give `step` to what calls it with (what, done, total)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(TextColumn("{task.description}", markup=False), BarColumn(bar_width=BAR_WIDTH),
                            TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn(compact=True), console=console)
        self.task: TaskID | None = None
        self.last = 0.0
        self.live: Live | None = None
        if console.is_terminal:
            self.live = Live(console=console, get_renderable=self._view, refresh_per_second=4)

    def __enter__(self: S) -> S:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop(kind is None)

    def start(self) -> None:
        if self.live:
            self.live.start()

    def stop(self, is_done: bool) -> None:
        if is_done:
            self._complete()
        if self.live:
            self.outlook = None  # nothing is left
            self.live.stop()

    def expect(self, steps: Sequence[tuple[str, float]]) -> None:
        """What is to come, each with its seconds."""
        self.outlook = Outlook(steps)

    def _view(self) -> RenderableType:
        if self.outlook is None or self.task is None:
            return self.bar
        number = f"step {self.outlook.place + 1}/{len(self.outlook.steps)}"
        return Group(self.bar, Text(f"{number}, about {duration(self.outlook.left(self.left))} left in all"))

    def step(self, what: str, done: float, total: float) -> None:
        """Shows that `done` of `total` of the step `what` is done; a new name begins a new line."""
        new = self.note(what, done, total)
        now = time.monotonic()
        if self.live:
            if new:
                self._complete()
                self.task = self.bar.add_task(what, total=total)
            assert self.task is not None
            self.bar.update(self.task, completed=done, total=total)
        elif new or now - self.last > PLAIN_SECONDS:
            self.last = now
            rest = f"  {done / total:.0%}  {duration(self.left)} left" if self.left is not None else ""
            all_left = f", about {duration(self.outlook.left(self.left))} in all" if rest and self.outlook else ""
            say(self.console, f"{what}{rest}{all_left}")

    def _complete(self) -> None:
        """What ended may not have said that it had."""
        if self.live and self.task is not None:
            self.bar.update(self.task, completed=self.bar.tasks[self.task].total)


class JsonProgress(LongSteps):
    """The same for a program: a JSON line an event; of steps that follow one another quickly, one a second.

    A step of training has `steps`, all of the run, and `left_s` besides its numbers. Other long steps are
    {"event": "progress", "what", "done", "total", "left_s"}; where all were estimated, {"event": "estimate", "seconds",
    "steps"} comes before them, and each has "all_left_s".
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.pace = Pace()
        self.last = 0.0

    def __enter__(self) -> JsonProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        pass

    def event(self, e: dict[str, Any]) -> None:
        """The progress of a run; that it is done is its result."""
        if e["event"] == "start":
            self.pace = Pace(e["steps"], e["done"])
        if e["event"] == "step":
            self.pace.step(e)
            if self._is_due(e["step"] in (1, self.pace.total)):
                self._write({**e, "steps": self.pace.total, "left_s": round(self.pace.left, 1)})
        elif e["event"] != "done":
            self._write(e)

    def step(self, what: str, done: float, total: float) -> None:
        if self._is_due(self.note(what, done, total) or done == total):
            all_left = {"all_left_s": round(self.outlook.left(self.left), 1)} if self.outlook else {}
            self._write({"event": "progress", "what": what, "done": done, "total": total,
                         "left_s": None if self.left is None else round(self.left, 1), **all_left})

    def expect(self, steps: Sequence[tuple[str, float]]) -> None:
        self.outlook = Outlook(steps)
        self._write({"event": "estimate", "seconds": round(self.outlook.seconds, 1),
                     "steps": [{"what": what, "seconds": round(seconds, 1)} for what, seconds in steps]})

    def _is_due(self, always: bool) -> bool:
        now = time.monotonic()
        if not always and now - self.last < JSON_SECONDS:
            return False
        self.last = now
        return True

    def _write(self, line: dict[str, Any]) -> None:
        print(json.dumps(line), file=self.file, flush=True)
