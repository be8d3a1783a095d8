"""Shows changing facts every second: live on a terminal, as JSON lines for a program."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click
from rich.console import RenderableType
from rich.live import Live

from ..errors import UsageError
from .app import out

SECONDS = 1.0  # between two looks
Facts = dict[str, Any]

watch_option = click.option("--watch", is_flag=True, help="Show it every second until Ctrl-C; with --json a line each.")
once_option = click.option("--once", is_flag=True, help="Say it once, also at a terminal.")


def stays(once: bool, asked: bool, as_json: bool) -> bool:
    """Returns whether a command stays and shows facts live. asked: by --watch. Raises UsageError for both at once."""
    if once and asked:
        raise UsageError("--once and --watch are both given", "leave one of them out")
    return asked or (sys.stdout.isatty() and not out.is_dumb_terminal and not once and not as_json)


def watch(look: Callable[[], Facts], view: Callable[[Facts], RenderableType], as_json: bool) -> None:
    """Shows facts until Ctrl-C. Raises what `look` raises."""
    with suppress(KeyboardInterrupt):
        if as_json:
            while True:
                click.echo(json.dumps(look()))
                time.sleep(SECONDS)
        with Live(view(look()), console=out, auto_refresh=False) as live:
            while True:
                time.sleep(SECONDS)
                live.update(view(look()), refresh=True)
