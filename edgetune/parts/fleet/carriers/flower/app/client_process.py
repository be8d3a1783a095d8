"""A node's `flwr-clientapp`, which runs the app that this node has, and never the one that the server sends.

In Flower whoever runs the SuperLink sends the code that its nodes run. A node of edgetune needs none of it.
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.clientapp import ClientApp
from flwr.supernode.cli import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

from .client_app import app

REPLACED = ("install_from_fab", "get_load_client_app_fn")


def main() -> None:
    """Raises AttributeError with a Flower that installs apps by other names, which then would not be replaced."""
    for name in REPLACED:
        getattr(run_clientapp, name)
    run_clientapp.install_from_fab = lambda *_given, **_named: None
    run_clientapp.get_load_client_app_fn = _own
    flwr_clientapp()


def _own(*_given: object, **_named: object) -> Callable[[str, str, str], ClientApp]:
    return lambda *_: app
