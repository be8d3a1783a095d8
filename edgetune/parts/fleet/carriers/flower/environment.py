"""Flower's environment: its Python, its programs, and the variables with which they run.

It may be that of edgetune, or a separate one, which pip made with only flwr. Flower's telemetry, its question for
updates and its installations at run time are off.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .....errors import EdgetuneError, UnsupportedError, printable
from .....python_child import child, die_with

LEAST = (1, 42)
"""Of flwr: the messages that the apps use. Later ones are tried when they are out."""
APP = "edgetune_flower"
OWN = Path(__file__).with_name("app")
_OFF = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
_VERSION = "import importlib.metadata as m, sys; print(m.version('flwr'), '%d.%d' % sys.version_info[:2])"
_SECONDS = 60.0
STOP_SECONDS = 10.0
_TAIL = 1 << 14  # bytes of a log that are looked at
_OWN = ("PYTHONPATH", "GGML_NO_BACKTRACE", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Flower:
    """python: of the environment; state: a folder for all that Flower writes. Make it with `find`."""

    python: Path
    state: Path

    @property
    def bin(self) -> Path:
        """Returns a folder before those of PATH, with programs in place of Flower's."""
        return self.state / "bin"

    def variables(self, **more: str) -> dict[str, str]:
        """Returns the environment of Flower's programs, which start each other by name."""
        path = os.pathsep.join([str(self.bin), str(self.python.parent), os.environ.get("PATH", os.defpath)])
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        return {**kept, **_OFF, "FLWR_HOME": str(self.state / "home"), "PATH": path, "PYTHONUNBUFFERED": "1", **more}

    def program(self, name: str) -> str:
        return str(self.python.parent / name)

    def run(self, *words: str) -> str:
        """Returns what a short program of the environment prints. Raises EdgetuneError with its last line if it fails.
        """
        done = subprocess.run(words, env=self.variables(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=False, timeout=_SECONDS)
        if done.returncode != 0:
            last = " ".join(done.stdout.split())[-300:]
            raise EdgetuneError(f"{Path(words[0]).name} {words[1]} failed: {printable(last)}", "see what it says")
        return done.stdout

    def app_folder(self) -> Path:
        """Returns the Flower App of this edgetune: a new copy of the folder app/, and what Flower wants to know of it.
        """
        folder = self.state / "app" / "edgetune-flower"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / APP).mkdir(parents=True)
        for path in OWN.glob("*.py"):
            shutil.copyfile(path, folder / APP / path.name)
        (folder / "pyproject.toml").write_text(_PROJECT, encoding="utf-8")
        return folder

    def replace_programs(self, programs: dict[str, str]) -> None:
        """Writes programs into `bin`. programs: the module of the app whose main is called, by name; "" refuses."""
        shutil.rmtree(self.bin, ignore_errors=True)
        self.bin.mkdir(parents=True)
        for name, module in programs.items():
            line = f'exec {shlex.join(self.module(module))} "$@"' if module else (
                f"echo 'a node of edgetune runs no {name}' >&2; exit 1")
            (self.bin / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
            (self.bin / name).chmod(0o700)

    def module(self, name: str) -> list[str]:
        """Returns the words that call main of a module of the app, in Flower's environment."""
        folder = str(self.state / "app" / "edgetune-flower")
        return [str(self.python), "-P", "-c",
                f"import sys; sys.path.insert(0, {folder!r}); from {APP}.{name} import main; main()"]


def find(python: Path | None, state: Path) -> Flower:
    """Flower's environment. python: its Python [that of edgetune]. Raises UnsupportedError if it has no such Flower.
    """
    named = python or Path(sys.executable)
    try:
        done = subprocess.run([str(named), "-c", _VERSION], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True, check=False, timeout=_SECONDS)
    except OSError as error:
        raise UnsupportedError(f"{named} is no Python: {error.strerror}", "name Flower's by --flower") from None
    words = done.stdout.split()
    if done.returncode != 0 or len(words) != 2:
        raise UnsupportedError(f"{named} has no package flwr, which carries these rounds", _way_out())
    version, of_python = words
    if _numbers(version) < LEAST or _numbers(of_python) < (3, 11):
        raise UnsupportedError(f"{named} has Flower {version} in Python {of_python}, these rounds need Flower "
                               f"{'.'.join(map(str, LEAST))} in Python 3.11 or later", _way_out())
    return Flower(named.absolute(), state)


def state_of(folder: Path, root: Path) -> Path:
    """Returns the place of keys and database of a server of this folder of rounds: not in it, for others may see it."""
    name = re.sub(r"[^\w-]", "_", folder.absolute().name)[:32] or "rounds"
    return root / f"flower-server-{name}-{hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:8]}"


def _way_out() -> str:
    return ("in Python 3.11 or later run pip install 'flwr>=1.42,<1.43'; or name the Python of another environment "
            "that has it by --flower; without Flower, a folder carries rounds: edgetune fleet follow")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(word) for word in version.split(".")[:2] if word.isdigit())


_PROJECT = f"""[project]
name = "edgetune-flower"
version = "1.0.0"
description = "Rounds of edgetune"
license = "Apache-2.0"
dependencies = ["flwr>=1.42"]

[tool.flwr.app]
publisher = "edgetune"

[tool.flwr.app.components]
serverapp = "{APP}.server_app:app"
clientapp = "{APP}.client_app:app"

[tool.flwr.app.config]
"""


def command(*words: str) -> tuple[list[str], dict[str, str]]:
    """Returns (the words of a command of this edgetune, variables that its environment needs)."""
    started = child("edgetune.__main__")
    return [*started["args"], *words], {name: started["env"][name] for name in _OWN if name in started["env"]}


@contextmanager
def running(words: Sequence[str], variables: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Yields a program with all that it starts, which are asked to end when the block does. log: what they print is
    added.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(words, env=variables, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                   start_new_session=True, preexec_fn=partial(die_with, os.getpid()))
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)


def last_line(log: Path) -> str:
    """Returns the last line of a log that says something, as one line of a sentence."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = [" ".join(line.split()) for line in file.read().decode("utf-8", "replace").splitlines()]
        return printable(next((line for line in reversed(lines) if line), "")[:300])
    return ""
