"""The verdict on a run, in a sentence that a person can act on: by held-out losses, else by those of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["learned", "still falling", "overfitted", "worse", "unmeasured"]
SHARE = 0.03  # of a loss: a smaller difference is not clear,
OF_FALL = 0.01  # nor is one below this share of the fall that training has reached
ROSE = 0.25  # the share by which the loss of learned rows is higher at the end of a ruined run,
LEAST_RISE = 0.1  # and at least this much


@dataclass(frozen=True)
class Verdict:
    """A verdict. step: the one whose adapter is kept."""

    kind: Kind
    sentence: str
    step: int


@dataclass(frozen=True)
class Course:
    """A run that has ended. history: (step, held-out loss) of all measurements, the one before the first step too.
    kept: the step whose adapter is kept. learned: the loss of the rows of its first and of its last steps. more: the
    command that continues training. of_rewards: a loss is minus a reward. milestones: names of what was trained
    after certain steps.
    """

    history: Sequence[tuple[int, float]]
    start: int  # steps that were done before it
    steps: int  # and in the end
    total: int  # and would have been, had it not ended by itself
    kept: int
    lr: float
    more: str
    learned: tuple[float, float] | None = None
    of_rewards: bool = False
    milestones: Mapping[int, str] = field(default_factory=dict)

    @property
    def what(self) -> str:
        return "reward" if self.of_rewards else "loss"

    def number(self, loss: float) -> str:
        """Formats a loss for people, with a reward's sign."""
        loss = 0.0 - loss if self.of_rewards else loss  # a reward of 0 is not -0
        return f"{loss:.2f}" if not math.isfinite(loss) or abs(loss) >= 1 else f"{loss:.3g}"

    def better(self, before: float, after: float) -> str:
        return f"{'rose' if self.of_rewards else 'fell'} from {self.number(before)} to {self.number(after)}"

    @property
    def way_out(self) -> str:
        return f"lower --lr, now {self.lr:g}, and look at the rows with edgetune data check"


def judge(course: Course) -> Verdict:
    """The verdict on a run that has done all its steps, or has ended by itself."""
    if not course.history:
        return _unmeasured(course)
    first, before = course.history[0]
    if first != course.start or first == course.history[-1][0]:
        return Verdict("unmeasured", f"Trained. Not compared: the held-out {course.what} is "
                       f"{course.number(course.history[-1][1])}, and was not measured on these rows before.",
                       course.kept)
    if course.kept == course.start:
        return _worse(course, before)
    return _better(course, before, dict(course.history)[course.kept])


def diverged(course: Course, kept: int) -> Verdict:
    """The verdict on a run whose loss became NaN or infinite after course.steps; step `kept` has the kept adapter."""
    return Verdict("worse", f"The loss was no longer a number in step {course.steps + 1}, and the adapter of step "
                   f"{kept} is kept: {course.way_out}.", kept)


def _better(course: Course, before: float, loss: float) -> Verdict:
    """The verdict on a run whose kept adapter, with this loss, is better."""
    kept = course.kept
    fall = before - loss if math.isfinite(before) else 0.0
    last_step, last = course.history[-1]
    fell = f"the held-out {course.what} {course.better(before, loss)}"
    if kept < last_step and _clear(last, loss, fall):
        return Verdict("overfitted", f"Overfitted from step {kept} on: {fell}, and was {course.number(last)} after "
                       f"step {last_step}; the adapter of step {kept} is kept. More rows help, and fewer epochs.", kept)
    earlier = course.history[-2][1]
    was = dict(course.history)
    parts = "".join(f" ({name}: {course.number(was[step])})" for step, name in course.milestones.items()
                    if step in was and step != kept)
    is_last = kept == last_step and course.steps >= course.total and kept not in course.milestones
    if is_last and _clear(earlier, loss, fall):
        rest = (f"{fell}, and from {course.number(earlier)} in the last {last_step - course.history[-2][0]} steps; "
                f"train on with {course.more}.")
        said = f"Still rising: {rest}" if course.of_rewards else f"Still falling: {rest}"
        return Verdict("still falling", said, kept)
    early = f"; later ones were no better, so it ended after step {course.steps}" if course.steps < course.total else ""
    return Verdict("learned", f"Learned: {fell}{parts} in {kept - course.start} of "
                   f"{course.total - course.start} steps{early}.", kept)


def _worse(course: Course, before: float) -> Verdict:
    step, last = course.history[-1]
    how = "No better" if last == before else "Worse"
    return Verdict("worse", f"{how} than before: the held-out {course.what} was {course.number(before)} before the "
                   f"first step and {course.number(last)} after step {step}, and never "
                   f"{'higher' if course.of_rewards else 'lower'}; what it began with is kept. Begin again: "
                   f"{course.way_out}.", course.start)


def _unmeasured(course: Course) -> Verdict:
    if course.learned is None:
        return Verdict("unmeasured", "Nothing was trained and nothing was measured.", course.steps)
    first, last = course.learned
    if not math.isfinite(last) or last - first > max(ROSE * abs(first), LEAST_RISE):
        what = "reward of its answers" if course.of_rewards else "loss of the rows that it learned"
        return Verdict("worse", f"Worse than before: the {what} was {course.number(first)} in the first "
                       f"steps and {course.number(last)} in the last. Begin again: {course.way_out}.", course.steps)
    return Verdict("unmeasured", "Trained. Not tested: no rows were held out; name some with --eval. Training "
                   f"{course.what} {course.number(first)} -> {course.number(last)}.", course.steps)


def _clear(higher: float, lower: float, fall: float) -> bool:
    return not math.isfinite(higher) or higher - lower > max(SHARE * abs(lower), OF_FALL * fall)
