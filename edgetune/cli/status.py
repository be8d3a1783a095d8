"""The command status: shows a daemon's activity, live at a terminal, else once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from ..console import ACTIONS
from ..errors import size_text
from ..manifest import manifests
from .adapters import ADAPTERS, BASE
from .app import out, show
from .facts import once_option, stays, watch_facts, watch_option
from .remote import request

JOB = r"^ftjob-\w+: "  # the start of a cause
SWITCHES = 3  # of the history, and of the governor's decisions


@request("status", once_option, watch_option)
def status_command(client: Any, once: bool, watch: bool, as_json: bool) -> None:
    """Show what the daemon serves, trains and learns.

    At a terminal it shows that every second until Ctrl-C. Without one, with --json or --once it says it once, and exits
    with 1 if not all is right.
    """
    if stays(once, watch, as_json):
        watch_facts(partial(_facts, client), view, as_json)
        return
    facts = _facts(client)
    show(as_json, facts, view(facts))
    click.get_current_context().exit(0 if facts["health"]["status"] == "ok" else 1)


def _facts(client: Any) -> dict[str, Any]:
    return {**client.get("/v1/device"), "health": client.get("/healthz"), "adapters": client.get(ADAPTERS)}


def view(facts: dict[str, Any]) -> RenderableType:
    from ..console import table
    memory = facts["memory"]
    serving = facts["serving"]
    health = facts["health"]
    found = facts["adapters"]
    names = short_names(found["data"])
    colour = "green" if health["status"] == "ok" else "yellow"
    others = [f"; {count} by {source}" for source, count in facts["answered"].items() if source != "model"]
    remembered = [a["verdict"].get("remembered") for a in found["data"] if a["id"] == found["serving"]]
    rows: list[list[str | Text]] = [
        ["health", Text.assemble((health["status"], colour), *(f"\n{reason}" for reason in health["reasons"]))],
        ["active", Text("\n".join(filter(None, (names.get(found["serving"], BASE), *remembered))))],
        ["memory", f"{size_text(memory['used'])} of {size_text(memory['budget'])}, "
                   f"{size_text(memory['available'])} available"],
        ["temperature", "unknown" if facts["temperature"] is None else f"{facts['temperature']:.1f} °C"],
        ["answers", f"{serving['working']} in progress, {serving['waiting']} waiting, {serving['requests']} in all; "
                    f"{serving['tokens_per_s']:.1f} tokens/s in the last one{''.join(others)}"],
        ["job", Text(_job(facts["job"]) if facts["job"] else "none")],
        ["learning", Text("\n".join(filter(None, (facts["learning"]["state"], facts["learning"]["unused"]))))],
        *([name, Text(text)] for manifest in manifests() if manifest.status
          for name, text in manifest.load(manifest.status)(facts)),
    ]
    return Group(table(facts["model"], ["", ""], rows),
                 *_happened("activated", [(event["at"], names.get(event["adapter"], BASE), event["cause"])
                                          for event in found["history"][:SWITCHES]]),
                 *_happened("pauses", [(event["at"], ACTIONS.get(event["action"], event["action"]), event["cause"])
                                       for event in facts["governor"][:SWITCHES]]))


def short_names(adapters: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Names by id: the given name, else the suffix of the job, with the end of the id where another one has it too."""
    parts = {each["id"]: each["id"].split(":")[-2:] for each in adapters}  # ft:MODEL:SUFFIX:NUMBER
    count = Counter(suffix for suffix, _ in parts.values())
    return {each["id"]: each.get("name") or (suffix if suffix and count[suffix] == 1 else f"{suffix} {number}".strip())
            for each in adapters for suffix, number in [parts[each["id"]]]}


def _happened(title: str, events: Sequence[tuple[float, str, str]]) -> list[RenderableType]:
    """A line an event: its time, its name, and as much of its cause as fits a terminal."""
    from ..console import shortened
    times = [_time(at) for at, _, _ in events]
    name_width = max((cell_len(name) for _, name, _ in events), default=0)
    lines = [f"{when.rjust(max(map(len, times)))}  {name.ljust(name_width)}  {' '.join(re.sub(JOB, '', cause).split())}"
             for when, (_, name, cause) in zip(times, events, strict=True)]
    shown = [Text(shortened(line, out.width) if out.is_terminal else line) for line in lines]
    return [Text(f"\n{title}", style="bold"), *shown] if shown else []


def _time(at: float) -> str:
    """The time of day; the day before it, unless that is today."""
    when = datetime.fromtimestamp(at)
    return when.strftime("%H:%M" if when.date() == datetime.now().date() else "%m-%d %H:%M")


def _job(job: dict[str, Any]) -> str:
    from ..console import duration
    parts = [job["id"], job["status"]]
    progress = job.get("progress") or {}
    if progress.get("phase") == "judging":
        of = f" {progress['judged']} of {progress['judging']}" if "judging" in progress else ""
        parts.append(f"evaluating{of}: the trained adapter answers held-out rows, compared with the active one")
    elif "says" in progress:
        parts.append(progress["says"])
    elif "step" in progress:
        parts.append(f"step {progress['step']}/{progress['steps']}")
        for name, form in (("loss", "loss {:.3f}"), ("reward", "reward {:.3f}"), ("tokens_per_s", "{:.0f} tokens/s")):
            if progress.get(name) is not None:
                parts.append(form.format(progress[name]))
        if progress.get("eta_s") is not None:
            parts.append(f"{duration(progress['eta_s'])} left")
    return "  ".join(parts)
