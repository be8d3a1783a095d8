"""Several runs in one page: their losses over one another, what they came to, and the options that differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..console import duration
from ..errors import UsageError, size_text
from ..version import __version__
from .chart import (
    NOTHING,
    STYLES,
    Chart,
    ChartLine,
    Content,
    Html,
    Points,
    element,
    figure,
    join,
    number,
    section,
    swatch,
    table,
    write_page,
)
from .history import History
from .report import DOTS, from_zero, in_columns, loss_axis, shown, shown_name

DRAWN = 6000  # points of a chart, of all runs together
ROSE = 1.25  # times the loss in the beginning
HEADS = ("run", "status", "held-out loss", "exact answers", "steps", "time", "peak memory")


def write_comparison(path: Path, runs: Sequence[History]) -> None:
    """The page as a file, whole or not at all. Raises UsageError for more runs than can be told apart; DiskError."""
    if len(runs) > len(STYLES):
        raise UsageError(f"{len(runs)} runs are named, {len(STYLES)} can be told apart", "name fewer")
    write_page(path, f"{len(runs)} runs compared", _parts(runs))


def names(runs: Sequence[History]) -> list[str]:
    """The name of each run's folder; its whole path where two have the same."""
    count = Counter(run.name for run in runs)
    return [run.name if count[run.name] == 1 else str(run.folder) for run in runs]


def lines(runs: Sequence[History]) -> list[list[str]]:
    """What each came to, by HEADS."""
    return [[name, *_line(run)] for name, run in zip(names(runs), runs, strict=True)]


def _line(run: History) -> Iterator[str]:
    held = run.held_out
    answers = run.answers
    peak = run.record.peak_rss_mib
    yield run.verdict.kind if run.verdict else run.record.status
    change = _change(run.measured(held.loss_before), run.measured(held.loss_after), ".3f") if held else NOTHING
    yield f"reward {change}" if held and run.of_rewards else change
    yield _change(answers.before, answers.after, ".0%") if answers else NOTHING
    yield f"{run.last_step:,}"
    yield duration(run.seconds)
    yield size_text(peak * 2**20) if peak else NOTHING


def _change(before: float | None, after: float | None, form: str) -> str:
    return f"{number(before, form)} → {number(after, form)}"


def facts(run: History) -> dict[str, Any]:
    """The same as JSON; null for what is unknown, or no number."""
    held = run.held_out
    answers = run.answers
    return {"folder": str(run.folder), "status": run.record.status, "verdict": run.verdict and vars(run.verdict),
            "held_out": held and {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in vars(held).items()},
            "answers": answers and {"rows": answers.rows, "before": answers.before, "after": answers.after},
            "steps": run.last_step, "seconds": run.seconds, "peak_rss_mib": run.record.peak_rss_mib,
            "tokens_per_s": run.tokens_per_s, "options": run.record.options, "damaged_lines": run.damaged}


def differing(runs: Sequence[History]) -> list[str]:
    """The options, of training and of the objective, that not all runs share."""
    every = [_options(run) for run in runs]
    known = dict.fromkeys(name for options in every for name in options)
    return [name for name in known if any(options.get(name) != every[0].get(name) for options in every)]


def _options(run: History) -> dict[str, Any]:
    objective = dict(run.record.objective or {})
    return {**run.record.options, "objective": objective.pop("name", "sft"), **objective}


# ---- the page -------------------------------------------------------------------------------------------------------


def _parts(runs: Sequence[History]) -> Iterator[Content]:
    yield element("p", " ".join(_cautions(runs)), class_="dim")
    heads = [[join([swatch(STYLES[at]), line[0]]), *line[1:]] for at, line in enumerate(lines(runs))]
    yield table(HEADS, heads, range(2, len(HEADS)))
    yield section("Loss over steps", *in_columns(_charts(runs)))
    yield section("Options that differ", _differences(runs))
    yield element("p", element("small", f"Made by edgetune {__version__}."))


def _cautions(runs: Sequence[History]) -> Iterator[str]:
    """What makes losses of these runs hard to compare."""
    for what, found in (("models", {str(run.record.base.get("fingerprint")) for run in runs}),
                        ("rows to learn", {str((run.record.data or {}).get("digest")) for run in runs}),
                        ("held-out rows", {run.held_out.digest if run.held_out else "" for run in runs})):
        if len(found) > 1:
            yield f"They have different {what}."


def _charts(runs: Sequence[History]) -> Iterator[Html | None]:
    for what, points in (("held-out rows", [[(m.step, m.loss) for m in run.measurements] for run in runs]),
                         ("the rows that are learned", [[(s.step, s.loss) for s in run.steps] for run in runs])):
        total = sum(map(len, points))
        stride = max(-(-total // DRAWN), 1)
        drawn = [ChartLine(name, [*found[:-1][::stride], *found[-1:]], STYLES[at], dots=total <= DOTS)
                 for at, (name, found) in enumerate(zip(names(runs), points, strict=True))]
        axes = {loss_axis(run) for run in runs}
        top = _top(points)
        cut = " (higher values are cut)" if top else ""
        yield figure(Chart(f"Loss of {what}{cut}", "step", axes.pop() if len(axes) == 1 else "loss", drawn,
                           from_zero=from_zero(drawn), top=top))


def _top(lines: Sequence[Points]) -> float | None:
    """The cut for lines of runs that got far worse than any run began, so that the others can be told apart."""
    finite = [[y for _, y in points if math.isfinite(y)] for points in lines]
    begun = max((ys[0] for ys in finite if ys), default=0.0)
    highest = max((y for ys in finite for y in ys), default=0.0)
    return ROSE * begun if highest > 2 * ROSE * begun > 0 else None


def _differences(runs: Sequence[History]) -> Html:
    found = differing(runs)
    if not found:
        return element("p", "None: they share all options.", class_="dim")
    rows = [[join([swatch(STYLES[at]), name]), *(shown(_options(run).get(option)) for option in found)]
            for at, (name, run) in enumerate(zip(names(runs), runs, strict=True))]
    shared = table(["run", *map(shown_name, found)], rows)
    assert shared is not None
    return shared
