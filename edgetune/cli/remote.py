"""Commands for a running daemon, and of them jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from itertools import islice, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
from rich.text import Text

from ..errors import DataError, NotFoundError, UsageError, shell_word
from .app import DATA, F, cli, column_options, command, explicit, job_options, out, show, train_progress
from .facts import shown
from .grouped import GroupedCommand, Listing
from .objective import ObjectiveCommand, take_objective

if TYPE_CHECKING:
    from ..data.formats import Columns
    from ..objectives.base import Objective

JOBS = "/v1/fine_tuning/jobs"
POLL = 1.0  # seconds
MADE = "fine_tuned_model"  # of a job: an id that is too long for a narrow table
INDENT = "  "  # of what is below an id
TIMES = ("_at", "_finish")  # how such fields of a job end


def request(name: str, *options: Any, group: click.Group = cli, cls: type[click.Command] = GroupedCommand,
            shows: bool = True) -> Callable[[F], F]:
    """A command on a running daemon: its function gets an open Client first; --url and --key-file come with it. shows:
    it only shows what the daemon answers; else it checks by itself how answers are shaped.
    """

    def register(function: F) -> F:
        def opened(url: str, key_file: Path | None, **given: Any) -> None:
            from ..daemon.client import Client, read_key
            with Client(url, read_key(key_file)) as client, client.understood() if shows else nullcontext():
                function(client, **given)
        opened.__doc__ = function.__doc__
        command(name, *options, daemon_options, group=group, cls=cls)(opened)
        return function

    return register


def daemon_options(command: F) -> F:
    command = click.option("--key-file", type=click.Path(path_type=Path),
                           help="File that holds a key (et-...) for the daemon [EDGETUNE_KEY].")(command)
    return click.option("--url", default="", help="The daemon: http://HOST:PORT or unix:/PATH [EDGETUNE_URL, else "
                        "http://127.0.0.1:8642].")(command)


def url_path(path: str, *names: str) -> str:
    """A path with typed names in it, quoted. Raises NotFoundError for a name that is empty or has a slash."""
    for name in names:
        if not name or "/" in name:
            raise NotFoundError(f"there is no {name!r}", f"edgetune {path.rpartition('/')[2]} lists those that exist")
    return "/".join([path, *(quote(name, safe=":") for name in names)])


def latest(client: Any, path: str, limit: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(the latest objects of a list, at most `limit`, 0: all; their number by kind)"""
    counts: dict[str, int] = client.get(path, limit=1)["counts"]
    return list(islice(client.all(path), limit or None)), counts


def show_latest(as_json: bool, found: list[dict[str, Any]], counts: dict[str, int],
                rows: list[tuple[list[str], str]], counted: str, nothing: str) -> None:
    """Shows the latest objects. rows: as `entries` takes them; nothing: the text if there are none."""
    show(as_json, {"object": "list", "data": found, "counts": counts},
         *(entries(rows) if rows else [nothing]), counted)


def entries(rows: list[tuple[list[str], str]]) -> list[Text]:
    """Shows rows as lines of id and short facts, long text below: ids, which people copy, are not broken."""
    widths = [max(len(facts[i]) for facts, _ in rows) for i in range(len(rows[0][0]))]
    lines: list[Text] = []
    for facts, detail in rows:
        cells = (fact.ljust(width) for fact, width in zip(facts, widths, strict=True))
        lines.append(Text("  ".join(cells).rstrip()))
        if detail:
            text = Text(detail, style="dim")
            parts = text.wrap(out, max(out.width - len(INDENT), 1)) if out.is_terminal else [text]
            lines.append(Text(INDENT) + Text(f"\n{INDENT}").join(parts))
    return lines


def format_time(seconds: int | None) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M") if seconds else ""


# ---- jobs -----------------------------------------------------------------------------------------------------------


@cli.group("jobs", cls=Listing)
def jobs() -> None:
    """List and control the daemon's training jobs.

    Without a command: list them.
    """


@request("list", group=jobs)
def jobs_list(client: Any, as_json: bool) -> None:
    """List all jobs, the newest first."""
    found = list(client.all(JOBS))
    rows = [([job["id"], state_of(job), format_time(job["created_at"])], _outcome(job)) for job in found]
    show(as_json, {"object": "list", "data": found}, *(entries(rows) if rows else ["there are no jobs"]))


def state_of(job: dict[str, Any]) -> str:
    """Returns where a job is, also if it is set aside. A daemon of an older version says that as its status."""
    return str(job.get("state", job["status"]))


def _outcome(job: dict[str, Any]) -> str:
    if job.get("error") and job["error"].get("message"):
        return str(job["error"]["message"])
    return str(job.get("fine_tuned_model") or "")


@request("create", DATA,
         click.option("--eval", "held_out", metavar="DATA", help="Held-out rows, which decide whether the adapter "
                      "takes over [a part of DATA]."),
         click.option("--model", default="", help="What to train, by the daemon's name of it [what it serves]."),
         click.option("--suffix", default="", help="A word for the adapter's name."),
         click.option("--follow", is_flag=True, help="Show how it goes until it ends."),
         column_options, job_options, group=jobs, cls=ObjectiveCommand)
def jobs_create(client: Any, data: Path, held_out: str | None, model: str, suffix: str, follow: bool,
                prompt_column: str, completion_column: str, as_json: bool, **options: Any) -> None:
    """Train on the rows of DATA.

    DATA is a file of this machine, or the id (file-...) of one that the daemon has.
    """
    from ..data.formats import Columns
    columns = Columns(prompt_column, completion_column)
    objective = take_objective(options)
    asked = {**explicit(options), **objective.options()}
    body = {"model": model or client.get("/v1/device")["model"], "training_file": file_id(client, str(data), columns),
            "validation_file": file_id(client, held_out, columns) if held_out else None,
            "suffix": suffix or None, "seed": asked.pop("seed", None),
            "method": {"type": objective.method, objective.method: _method(objective, asked)}}
    job = client.post(JOBS, {name: value for name, value in body.items() if value is not None})
    if follow:
        jobs_follow(client, job["id"], as_json)
    else:
        show(as_json, job, *begun_lines(job))


def _method(objective: Objective, asked: dict[str, Any]) -> dict[str, Any]:
    """The fields of a job's method: hyperparameters and, where the objective has one, its grader, a file here."""
    from ..evaluation.graders.rewards import rewards_of
    from ..objectives.drawn import Rewarded
    if not isinstance(objective, Rewarded):
        return {"hyperparameters": asked}
    if objective.unsafe_python:
        raise UsageError("--unsafe-python is given, and a daemon runs no grader without a sandbox", "leave it out")
    if not objective.reward:  # which the daemon looks for
        objective, _ = rewards_of(objective)
    named = {"grader": json.loads(objective.grader)} if objective.grader else {}
    left = {name: value for name, value in asked.items() if name not in ("grader", "unsafe_python")}
    return {**named, "hyperparameters": left}


def begun_lines(job: dict[str, Any]) -> list[str]:
    from ..console import Copyable
    return [f"{job['id']} is {state_of(job)}; to follow it:", Copyable(f"edgetune jobs follow {shell_word(job['id'])}")]


def file_id(client: Any, data: str, columns: Columns) -> str:
    """The id of a file that the daemon has, or of rows of this machine, which are uploaded."""
    from ..data.files import begins_with_questions
    from ..data.formats import BY_KEYS
    from ..data.parts import parts_of
    if data.startswith("file-"):
        if columns != BY_KEYS:
            raise UsageError(f"columns are named, and {data} is a file that the daemon has",
                             "name a file of this machine, or leave them out")
        return data
    path = Path(data)
    parts = parts_of(path)
    is_read_here = parts[0].suffix.lower() == ".parquet" or begins_with_questions(parts[0])
    if columns == BY_KEYS and len(parts) == 1 and not is_read_here:
        return str(client.upload(parts[0]))
    with TemporaryDirectory() as folder:
        lines = Path(folder) / f"{path.stem}.jsonl"
        _write_lines(lines, path, columns)
        return str(client.upload(lines))


def _write_lines(lines: Path, path: Path, columns: Columns) -> None:
    """Writes rows as JSON Lines; with named columns, as prompt and completion. Raises DataError."""
    from ..data import rows as supervised_rows
    from ..data.files import place, read_rows
    from ..data.formats import BY_KEYS, recognised
    with lines.open("w") as written:
        for number, row in read_rows(path):
            try:
                if isinstance(row, str):
                    row = {"text": row}
                elif columns != BY_KEYS:
                    row = recognised(row, [supervised_rows], columns)
                written.write(json.dumps(row) + "\n")
            except DataError as error:
                raise DataError(f"{place(number, path.name)}: {error.what}", error.hint) from None


@request("show", click.argument("job"), group=jobs)
def jobs_show(client: Any, job: str, as_json: bool) -> None:
    """Show JOB: its state, its result and its options."""
    from ..console import Copyable, table
    found = client.get(url_path(JOBS, job))
    report = [Copyable(f"report: {client.url}{found['report']}")] if found.get("report") else []
    facts = {**found, "method": _method_in_short(found["method"])}
    rows = [[name.replace("_", " "), Text(format_time(value) if name.endswith(TIMES) else shown(value))]
            for name, value in facts.items() if value and name not in (MADE, "object", "hyperparameters", "report")]
    made = [Copyable(f"{MADE.replace('_', ' ')}: {found[MADE]}")] if found.get(MADE) else []
    show(as_json, found, table("", ["", ""], rows), *made, *report)


def _method_in_short(method: dict[str, Any]) -> dict[str, Any]:
    """A job's method with those of its hyperparameters that differ from their defaults; --json shows all."""
    from ..objectives.base import objectives
    from ..options import declared
    from ..training.config import defaults_of
    name = method["type"]
    kinds = [kind for kind in objectives().values() if kind.method == name]
    part = method.get(name) or {}
    asked = part.get("hyperparameters") or {}
    defaults = defaults_of(asked) | {spec.name: spec.default for kind in kinds for spec in declared(kind)}
    defaults |= {name: value for kind in kinds for name, value in kind.defaults.items()}
    changed = {option: value for option, value in asked.items()
               if option in defaults and value != defaults[option]}
    return {"name": name, **{key: value for key, value in part.items() if key != "hyperparameters"}, **changed}


@request("follow", click.argument("job"), group=jobs)
def jobs_follow(client: Any, job: str, as_json: bool) -> None:
    """Show how JOB goes until it ends.

    It exits with 0 if the job succeeded. Ctrl-C leaves the job to the daemon.
    """
    from ..console import say
    from ..daemon.client import has_ended
    last = None
    with train_progress(as_json) as progress:
        while True:
            found = client.get(url_path(JOBS, job))  # before its events: what ended has no later ones
            for event in _events_after(client, job, last):
                last = event["id"]
                if event["type"] == "metrics":
                    progress.event(event["data"])
                elif not as_json:
                    say(out, Text(event["message"]))
            if has_ended(found):
                break
            time.sleep(POLL)
    show(as_json, found, f"{job} {found['status']}: {_outcome(found)}".rstrip(": "))
    if found["status"] != "succeeded":
        click.get_current_context().exit(1)


def _events_after(client: Any, job: str, last: str | None) -> list[dict[str, Any]]:
    """Lists begin with the newest."""
    listed = client.all(url_path(JOBS, job, "events"), limit=100)
    return [*takewhile(lambda event: event["id"] != last, listed)][::-1]


def _add_action(action: str, text: str) -> None:
    @request(action, click.argument("job"), group=jobs)
    def act(client: Any, job: str, as_json: bool) -> None:
        found = client.post(url_path(JOBS, job, action))
        show(as_json, found, f"{found['id']} is {state_of(found)}")

    jobs.commands[action].help = text


_add_action("cancel", "End JOB; what it has trained is dropped.")
_add_action("pause", "Save JOB and let it wait for resume.")
_add_action("resume", "Continue JOB where it was paused.")


# ---- adapters -------------------------------------------------------------------------------------------------------
