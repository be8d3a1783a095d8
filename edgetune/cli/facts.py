"""Facts in a table: models info, doctor and lab device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from ..errors import size_text
from . import watched
from .app import ModelPath, command, show
from .lab import lab
from .models import models
from .watched import watch_option

SHORT = 19  # characters of a fingerprint that tell one from another, as errors show them; --json has all
COUNTED = ("formats", "targets")  # by names that a file has, which stay as they are


@command("info", click.argument("file", type=ModelPath()), group=models)
def info_command(file: Path, as_json: bool) -> None:
    """Describe a model, a bundle or an adapter.

    For a model it says the formats and the size, and whether it can be trained here.
    """
    from ..console import Copied
    from .info import describe
    facts = describe(file)
    show(as_json, facts, Copied(facts["file"]), _facts_table({k: v for k, v in facts.items() if k != "file"}))


@command("device", click.option("--root", type=click.Path(path_type=Path), default=Path("/"),
                                help="Describe the machine whose /proc and /sys are below this folder."), watch_option,
         group=lab)
def device_command(root: Path, watch: bool, as_json: bool) -> None:
    """Show what is known of this device.

    It shows what was detected, the profile with its reason, what overrides it, and the temperature. With --watch:
    only the sensors.
    """
    from .info import describe_device, sensor_reader
    if watch:
        watched.watch(sensor_reader(root), _known_facts, as_json)
        return
    facts = describe_device(root)
    show(as_json, facts, _known_facts(facts))


@command("doctor")
def doctor_command(as_json: bool) -> None:
    """Check whether this machine can train and answer.

    It begins with whether the machine is ready, or what to do, and exits with 1 if not. Then: the CPU's features,
    kernels, llama.cpp, memory, and what is missing.
    """
    from .info import examine
    facts = examine()
    show(as_json, facts, *doctor_lines(facts))
    click.get_current_context().exit(0 if facts["ready"] else 1)


def doctor_lines(facts: dict[str, Any]) -> list[Any]:
    """The verdict, then what was found."""
    head, _, rest = facts["verdict"].partition(": ")
    return [Text.assemble((head, "bold green" if facts["ready"] else "bold yellow"), f": {rest}\n"),
            _known_facts({key: value for key, value in facts.items() if key not in ("ready", "verdict")})]


def _known_facts(facts: dict[str, Any]) -> Table:
    return _facts_table({key: value for key, value in facts.items() if value not in ("", None)})


def _facts_table(facts: dict[str, Any]) -> Table:
    from ..console import table
    return table("", ["", ""], [[key.replace("_", " "), Text(_fact(key, value))] for key, value in facts.items()])


def _fact(key: str, value: Any) -> str:
    if key.startswith(("bytes", "memory")):
        return size_text(value)
    if key == "fingerprint":
        return str(value[:SHORT])
    if key == "schema":
        return json.dumps(value)
    if key == "missing":
        return "\n".join(value) or "nothing"
    if key in COUNTED:
        return ", ".join(f"{name} {shown(count)}" for name, count in value.items())
    return shown(value)


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return _named(value)
    if isinstance(value, list | tuple):
        between = "\n" if any(isinstance(item, dict) for item in value) else ", "
        return between.join(map(shown, value)) or "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _named(value: dict[str, Any]) -> str:
    """Shows names with their values: in one line, or on a line each if a value has several parts."""
    parts = {"" if key == "name" else key.replace("_", " "): shown(item)
             for key, item in value.items() if item not in ("", None)}
    if any(", " in part for name, part in parts.items() if name):
        return "\n".join(f"{name}: {part}" if name else part for name, part in parts.items())
    return ", ".join(f"{name} {part}".lstrip() for name, part in parts.items())
