"""serve, and service install, uninstall and key."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from ..daemon.options import DaemonConfig
from ..errors import EdgetuneError, install_hint, shell_word
from ..machine.policy import Policy
from .app import MODEL, F, cli, command, config_options, policy_file_option, policy_of, show
from .configured import config_option, from_environment
from .names import EXTRAS

NICE = 19  # a training uses only the processor time that nobody else wants


def daemon_options(*left_out: str) -> Callable[[F], F]:
    def add(command: F) -> F:
        named = [spec.name for spec in (*fields(DaemonConfig), *fields(Policy)) if spec.name not in (*left_out, "nice")]
        command = policy_file_option(config_options(*named, of=Policy)(config_option()(command)))
        return config_options(*named, of=DaemonConfig)(command)

    return add


def options_of(policy_file: Path | None, options: dict[str, Any]) -> tuple[DaemonConfig, Policy]:
    policy = policy_of(policy_file, options, nice=NICE)
    return DaemonConfig(**options).check(), policy


@command("serve", from_environment("EDGETUNE_DAEMON"), MODEL, daemon_options())
def daemon_command(model: Path, policy_file: Path | None, as_json: bool, **options: Any) -> None:
    """Serve MODEL with OpenAI's API, and train it.

    MODEL is a GGUF or a bundle. Training has OpenAI's calls too, and a page is shown at /.

    It listens only on this machine until --host says otherwise, which needs keys. Training yields to answers; a new
    adapter takes over only if it answers held-out rows no worse. SIGTERM, Ctrl-C and a closed terminal finish the
    answers in progress, save what is trained and end with 0; started again, the daemon continues.

    Each option can come from an environment variable: EDGETUNE_DAEMON_ and its name, as EDGETUNE_DAEMON_MEMORY=500M.
    MODEL can be EDGETUNE_DAEMON_MODEL.
    """
    config, policy = options_of(policy_file, options)
    needed = next(extra for extra in EXTRAS if extra.name == "daemon")
    if missing := needed.missing():
        raise EdgetuneError(f"the daemon needs {', '.join(missing)}", install_hint(needed.name))
    from ..daemon.memory import keep_little
    from ..daemon.server import run
    from ..daemon.service import Service

    keep_little()

    def ready(url: str) -> None:
        gc.collect()
        gc.freeze()  # a collection over the objects of the start takes 0.1 s of a fast CPU, in which no thread works
        show(as_json, {"url": url, "model": model.name}, f"{model.name} answers at {url}")

    run(Service(model, config, policy), on_interrupt=_end_line, on_ready=ready)


def _end_line() -> None:
    """Ends the line after the ^C of a terminal, unbuffered: a signal may come while a buffer is written to."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\n")


@cli.group("service")
def service() -> None:
    """Run the daemon with systemd, and make keys.

    It runs as a separate user that sees nothing of people's homes.
    """


@command("install", MODEL,
         click.option("--print", "print_only", is_flag=True, help="Print the unit and change nothing."),
         daemon_options("state"), group=service)
def install_command(model: Path, print_only: bool, policy_file: Path | None, as_json: bool, **options: Any) -> None:
    """Install and start a service that serves MODEL.

    It writes a systemd unit, enables and starts it, which needs root. The state is in /var/lib/edgetune. The budget is
    fixed now: --memory, or its share of what is available. A --socket must be below /run/edgetune, for root and the
    group that a drop-in names (systemctl edit edgetune).
    """
    from ..console import Copyable
    from ..daemon import unit
    from ..daemon.learning.method import learn_method
    config, policy = options_of(policy_file, options)
    learn_method(config)
    text = unit.unit(model, config, policy)
    if print_only:
        show(as_json, {"unit": text}, Copyable(text))
        return
    path = unit.install(text)
    show(as_json, {"unit": text, "path": str(path)}, f"{path} is written, enabled and runs",
         "edgetune status shows what it does, journalctl -u edgetune what it said")


@command("uninstall", group=service)
def uninstall_command(as_json: bool) -> None:
    """Stop the service, disable it and remove its unit. Needs root. Models, adapters and feedback stay."""
    from ..daemon import unit
    path = unit.uninstall()
    show(as_json, {"path": str(path)}, f"{path} is removed; the state stays in /var/lib/edgetune")


@command("key", click.argument("name"),
         click.option("--scope", type=click.Choice(["answer", "feedback", "admin"]), default="admin", show_default=True,
                      help="What it is for: to ask; to ask and to give feedback; everything."),
         click.option("--key-file", type=click.Path(path_type=Path),
                      help="File that keeps its hash [~/.config/edgetune/keys]."), group=service)
def key_command(name: str, scope: str, key_file: Path | None, as_json: bool) -> None:
    """Make a key for the client NAME, and print it once.

    The file, which the daemon takes as --key-file, stores only its hash. A key ends when its line is removed. A daemon
    reads a changed file at the next request; a service must be restarted: systemctl restart edgetune.
    """
    from ..console import Copyable
    from ..daemon.keys import SCOPES, add_key, default_file
    path = key_file or default_file()
    key = add_key(path, name, SCOPES[scope])
    show(as_json, {"key": key, "name": name, "scope": scope, "key_file": str(path)}, Copyable(key),
         f"that is the key of {name}, with the scope {scope}, shown this once; the file keeps its hash:",
         Copyable(f"edgetune serve MODEL --key-file {shell_word(path)}"))
