"""report.html of a run: what it came to, how it went, what it answers now, and what it was made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..console import ACTIONS, duration
from ..errors import shell_word, size_text
from ..training.config import defaults_of
from ..training.metrics import REPORT
from ..version import __version__
from .chart import (
    NOTHING,
    Chart,
    ChartLine,
    Content,
    Html,
    Mark,
    Style,
    details,
    element,
    figure,
    join,
    number,
    section,
    table,
    tiles,
    write_page,
)
from .history import ExactAnswers, History, read_history
from .tables import write_metrics

DOTS = 100  # measurements that are drawn as dots at most
LONGEST = 600  # characters of an answer that are shown
KINDS = {"learned": "good", "still falling": "fair", "overfitted": "fair", "worse": "bad"}


def write_report(folder: str | Path) -> Path:
    """Write report.html and metrics.csv into the folder of a run in any state; each is replaced at once or not at all.
    Returns the report's path. Raises FormatError for a folder without a run, DiskError.
    """
    folder = Path(folder)
    history = read_history(folder)
    write_metrics(folder)
    write_html(folder / REPORT, history)
    return folder / REPORT


def write_html(path: Path, history: History) -> None:
    """The report alone, as a file. Raises DiskError."""
    write_page(path, title(history), parts(history))


def title(history: History) -> str:
    return f"{history.name}: a training of {history.record.base.get('name') or 'a model'}"


def parts(history: History) -> Iterator[Content]:
    yield element("p", " · ".join(_described(history)), class_="dim")
    yield _verdict(history)
    yield tiles(_tiles(history))
    yield section("How it went", *in_columns(charts(history)))
    yield section("Answers on held-out rows, before and after", *_answers(history.answers))
    yield section("What it yielded to", _decisions(history))
    yield section("Resumed", table(["after step", "changed"], (
        [f"{found.step:,}", ", ".join(found.changed) or NOTHING] for found in history.resumes), (0,)))
    yield section("Options", *_options(history))
    yield section("Data, model, memory", table([], _facts(history)))
    yield element("p", element("small", _footer(history)))


def _described(history: History) -> Iterator[str]:
    record = history.record
    yield str(record.base.get("architecture") or "unknown architecture")
    yield f"objective {(record.objective or {}).get('name', 'sft')}"
    if started := (record.origin or {}).get("started"):
        yield f"started {str(started)[:16].replace('T', ' ')}"
    yield f"edgetune {record.edgetune or 'unknown'}"


def _verdict(history: History) -> Html:
    record = history.record
    done = f"step {history.last_step:,}" + (f" of {record.total_steps:,}" if record.total_steps else "")
    if history.verdict:
        kind = KINDS.get(history.verdict.kind, "")
        said = history.verdict.sentence
    else:
        kind = {"failed": "bad", "paused": "fair"}.get(record.status, "")
        said = f"{record.status.capitalize()}: {done}."
    head, colon, rest = said.partition(":")
    return element("p", element("b", head), f"{colon}{rest}", class_=f"verdict {kind}")


def _tiles(history: History) -> Iterator[tuple[str, str, str]]:
    record = history.record
    if held := history.held_out:
        before, after = (history.measured(loss) for loss in (held.loss_before, held.loss_after))
        yield (f"held-out {history.record.measure}", f"{number(before, '.3f')} → {number(after, '.3f')}",
               f"{held.rows:,} rows, best at step {held.best_step:,}")
    if answers := history.answers:
        yield ("exact answers", f"{number(answers.before, '.0%')} → {number(answers.after, '.0%')}",
               f"of {answers.rows:,} held-out rows")
        if answers.structured is not None:
            yield ("held to their schema", number(answers.structured, ".0%"), "exact answers, all of them JSON")
    total = f"of {record.total_steps:,}" if record.total_steps else ""
    yield "steps", f"{history.last_step:,}", total
    yield "time", duration(history.seconds), f"{history.tokens_per_s:,.0f} tokens/s" if history.tokens_per_s else ""
    if peak := max(history.record.peak_rss_mib, *(step.rss_mib for step in history.steps), 0.0):
        budget = _budget(history)
        yield "peak memory", size_text(peak * 2**20), f"of {size_text(budget * 2**20)}" if budget else ""


def _budget(history: History) -> float | None:
    """MiB; None where the version did not record it."""
    found = history.record.plan.get("budget_mib")
    return float(found) if isinstance(found, int | float) else None


# ---- charts ---------------------------------------------------------------------------------------------------------


def charts(history: History) -> Iterator[Html | None]:
    """Loss or reward, learning rate, memory and speed over the steps."""
    steps = history.steps
    yield figure(_rewards(history) if history.of_rewards else _losses(history))
    rates = ChartLine("learning rate", [(step.step, step.lr) for step in steps], Style(2))
    yield figure(Chart("Learning rate", "step", "rate of AdamW", [rates], from_zero=True))
    budget = _budget(history)
    memory = ChartLine("memory of the process", [(step.step, step.rss_mib) for step in steps], Style(3))
    yield figure(Chart("Memory", "step", "MiB", [memory], ("budget", budget) if budget else None, marks(history),
                       from_zero=True))
    speed = ChartLine("speed", [(step.step, step.tokens_per_s) for step in steps], Style(7))
    yield figure(Chart("Speed", "step", "tokens/s", [speed], None, marks(history), from_zero=True))


def _losses(history: History) -> Chart:
    learned = ChartLine("training rows", [(step.step, step.loss) for step in history.steps], Style(0))
    held = [(found.step, found.loss) for found in history.measurements]
    lines = [learned, ChartLine("held-out rows", held, Style(1, 1), dots=len(held) <= DOTS)]
    return Chart("Loss", "step", loss_axis(history), lines, marks=_kept(history), from_zero=from_zero(lines))


def _rewards(history: History) -> Chart:
    """Answers that are learned from are drawn, those to held-out prompts the likeliest."""
    learned = [(step.step, step.reward) for step in history.steps if step.reward is not None]
    held = [(found.step, -found.loss) for found in history.measurements]
    lines = [ChartLine("answers that are learned from", learned, Style(0)),
             ChartLine("likeliest answers to held-out prompts", held, Style(1, 1), dots=len(held) <= DOTS)]
    return Chart("Reward", "step", "mean reward", lines, marks=_kept(history), from_zero=from_zero(lines))


def in_columns(figures: Iterable[Html | None]) -> Iterator[Html]:
    """Side by side where the page is wide; nothing where there is nothing to draw."""
    if drawn := [found for found in figures if found is not None]:
        yield element("div", *drawn, class_="charts")


def loss_axis(history: History) -> str:
    """The loss of supervised rows has a unit."""
    return "nats a token" if (history.record.objective or {}).get("name", "sft") == "sft" else "loss"


def from_zero(lines: list[ChartLine]) -> bool:
    """Whether an axis that begins at zero leaves the lines at least half of it."""
    values = [y for line in lines for _, y in line.points if y == y]
    return bool(values) and 0 <= min(values) < max(values) / 2


def _kept(history: History) -> list[Mark]:
    """The step whose adapter is kept, where it was chosen."""
    if history.held_out is None or history.verdict is None or history.verdict.step is None:
        return []
    step = history.verdict.step
    return [Mark(step, "go", f"kept: step {step:,}", "this adapter is kept")]


def marks(history: History) -> list[Mark]:
    return [Mark(found.step, found.action, f"governor: {ACTIONS[found.action]}", found.cause)
            for found in history.decisions if found.action in ACTIONS]


# ---- tables ---------------------------------------------------------------------------------------------------------


def _answers(answers: ExactAnswers | None) -> Iterator[Html]:
    for pair in answers.pairs if answers else ():
        if isinstance(pair, dict):
            shown = [element("div", element("small", name), _quoted(pair.get(name)))
                     for name in ("expected", "before", "after")]
            yield element("div", _quoted(pair.get("prompt")), element("div", *shown), class_="answer")


def _quoted(value: Any) -> Html:
    """What a row or the model says, as it is written there."""
    said = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    if len(said) > LONGEST:
        said = f"{said[:LONGEST]} … ({len(said):,} characters)"
    return element("p", said or NOTHING, class_="text", dir="auto")


def _decisions(history: History) -> Html | None:
    shown = table(["after step", "", "because"], (
        [f"{found.step:,}", ACTIONS.get(found.action, found.action), found.cause] for found in history.decisions), (0,))
    if history.decision_count > len(history.decisions):
        return join([element("p", f"The last {len(history.decisions)} of {history.decision_count:,} decisions.",
                             class_="dim"), shown])
    return shown


def _options(history: History) -> Iterator[Content]:
    given = history.record.options
    defaults = defaults_of(given)
    chosen = {name: value for name, value in given.items() if name not in defaults or defaults[name] != value}
    rows = [[shown_name(name), shown(value), shown(defaults.get(name))] for name, value in chosen.items()]
    yield table(["option", "here", "default"], rows) or element("p", "All are at their defaults.", class_="dim")
    others = [[shown_name(name), shown(value)] for name, value in given.items() if name not in chosen]
    yield details(f"{len(others)} options at their defaults", table(["option", "value"], others))


def shown_name(option: str) -> str:
    return option.replace("_", "-")


def shown(value: Any) -> str:
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _facts(history: History) -> Iterator[tuple[str, str]]:
    record = history.record
    base = record.base
    origin = record.origin or {}
    yield "model", f"{base.get('name', NOTHING)} ({str(base.get('fingerprint', ''))[:19]})"
    if start := record.start:
        yield "began from", str(start.get("path"))
    if origin.get("data"):
        yield "file of rows", str(origin["data"])
    if data := record.data:
        yield "rows to learn", ", ".join(_data(data))
    if held := history.held_out:
        yield "held-out rows", f"{held.rows:,}" + (f" ({origin['held_out']})" if origin.get("held_out") else "")
    for change in record.changed:
        if isinstance(change, dict):
            yield "changed", f"{change.get('name')}: {change.get('was')} → {change.get('now')}"
    if record.isa:
        yield "computed by", f"{record.isa} ({record.products}), {record.threads} threads"
    if isinstance(planned := record.plan.get("peak_mib"), int | float):
        yield "memory by the plan", size_text(planned * 2**20)
    traded = record.plan.get("traded") or []
    yield "traded for memory", "; ".join(map(str, traded)) if isinstance(traded, list) and traded else "nothing"
    if isinstance(policy := origin.get("policy"), dict) and policy.get("govern"):
        yield "yields", ", ".join(f"{shown_name(name)} {shown(value)}" for name, value in policy.items()
                                  if value and name != "govern")
    if isinstance(command := origin.get("command"), list) and command:
        yield "command", " ".join(map(shell_word, command))


def _data(data: dict[str, Any]) -> Iterator[str]:
    for name, words in (("rows", "{} rows"), ("tokens", "{} tokens"), ("supervised", "{} of them supervised"),
                        ("truncated", "{} rows cut"), ("skipped", "{} left out")):
        if isinstance(value := data.get(name), int) and (value or name not in ("truncated", "skipped")):
            yield words.format(f"{value:,}")


def _footer(history: History) -> str:
    drawn = f" Of {history.step_count:,} steps every {history.every}th is drawn." if history.every > 1 else ""
    damaged = f" {history.damaged:,} damaged lines of metrics.jsonl are left out." if history.damaged else ""
    return f"Made by edgetune {__version__} from run.json and metrics.jsonl.{drawn}{damaged} metrics.csv has all steps."
