"""adapters route: questions by which an adapter is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ...cli.adapters import ADAPTERS, adapters
from ...cli.app import column_options, show
from ...cli.remote import file_id, request, url_path


@request("route", click.argument("adapter"), click.argument("data", type=click.Path(path_type=Path), required=False),
         column_options, click.option("--off", is_flag=True, help="Let it be chosen no longer."), group=adapters)
def adapters_route(client: Any, adapter: str, data: Path | None, prompt_column: str, completion_column: str, off: bool,
                   as_json: bool) -> None:
    """Let NAME:auto choose ADAPTER by questions of its task.

    DATA has them: a file of this machine, or the id (file-...) of one that the daemon has [what ADAPTER was trained
    on]. The daemon needs --embeddings. It keeps only vectors of the questions.
    """
    from ...data.formats import Columns
    path = url_path(ADAPTERS, adapter, "questions")
    if off:
        show(as_json, client.delete(path), f"{adapter} is chosen no longer")
        return
    file = file_id(client, str(data), Columns(prompt_column, completion_column)) if data else None
    try:
        found = client.post(path, {"file": file})
    finally:
        if file and file != str(data):
            client.delete(url_path("/v1/files", file))
    show(as_json, found, f"{found['id']} is chosen for questions like {found['questions']} of its task")
