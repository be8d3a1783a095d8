"""--url: answers by a daemon that has the model loaded, instead of loading it here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .app import F, explicit


def url_options(command: F) -> F:
    """--url and --key-file. --url is read first: MODEL is a daemon's name then."""
    command = click.option("--key-file", type=click.Path(path_type=Path),
                           help="With --url: file that holds a key (et-...) for the daemon [EDGETUNE_KEY].")(command)
    return click.option("--url", default="", is_eager=True,
                        help="Ask a daemon, http://HOST:PORT or unix:/PATH, which has its model loaded already; MODEL "
                             "is one of its names, such as NAME:latest.")(command)


def refuse_beside(url: str, key_file: Path | None, **options: Any) -> None:
    """Refuses options of local computing where a daemon computes, and a key without one. Raises UsageError."""
    if not url and key_file is not None:
        raise UsageError(f"--key-file {key_file} is given without --url", "leave it out, or name the daemon with --url")
    for name in explicit(options) if url else ():
        raise UsageError(f"--{name.replace('_', '-')} is given with --url, where the daemon computes",
                         "leave one of them out")


@contextmanager
def remote_model(model: Path, url: str, key_file: Path | None) -> Iterator[Any]:
    from ..daemon.client import Client, RemoteModel, read_key
    with Client(url, read_key(key_file)) as client:
        yield RemoteModel(client, str(model))
