"""data label: a teacher labels states with typed questions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ...cli.app import DATA, command, out, show, step_progress, stop_on_signals
from ...cli.data import KEY, data, only_model, read_key
from ...cli.output import new_file
from ...errors import DataError

ROUTES = ("systemone", "decisions", "chat")


@command("label", DATA,
         click.option("-o", "--out", "path", type=click.Path(path_type=Path), required=True, callback=new_file,
                      help="New file of rows."),
         click.option("--url", required=True, help="Server of the teacher, such as http://127.0.0.1:8642/v1."),
         click.option("--route", type=click.Choice(ROUTES), default=ROUTES[0], show_default=True,
                      help="Ask by POST /v1/systemone, by POST /v1/decisions, or in OpenAI's chat."),
         click.option("--model", default="", help="The server's name of the teacher [the only one that it has]."),
         click.option("--parallel", type=click.IntRange(1, 64), default=4, show_default=True,
                      help="States that are asked about at once."),
         click.option("--key-file", type=click.Path(path_type=Path), help=f"File that holds the server's key [{KEY}]."),
         group=data)
def label_command(data: Path, path: Path, url: str, route: str, model: str, parallel: int, key_file: Path | None,
                  as_json: bool) -> None:
    """Let a teacher label states.

    DATA has rows of state and questions without answers; a first line with only questions counts for all. Each row of
    the new file has the teacher's probabilities as gold, and its name as teacher. After a stop the same command
    continues.
    """
    from ...daemon.endpoint import Endpoint
    from ...data.files import read_rows
    from .teacher import label
    rows = [row for _, row in read_rows(data)]
    if not rows:
        raise DataError(f"{data} has no rows", "write some states")
    server = Endpoint(url, model, read_key(key_file))
    try:
        server.model = model or only_model(server)
        with stop_on_signals() as should_stop, step_progress(out, as_json) as progress:
            counts = label(rows, server, route, path, parallel, progress.step, should_stop)
    finally:
        server.close()
    show(as_json, {"out": str(path), "model": server.model, **asdict(counts)},
         f"{server.model} labelled {counts.kept} of {counts.prompts} states, in {path}",
         *([f"{counts.refused} were refused, or answered in another form"] if counts.refused else []))
