"""What a part is: a feature that is whole in one folder, `edgetune/parts/NAME`, with its manifest in `part.py`.

The rest knows parts only by their manifests: the command line finds commands there, the daemon its options, routes,
kinds of jobs and answer sources, the page its panels. So a folder can be removed, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, ClassVar, NamedTuple

FOLDER = f"{__package__}.parts"


class Extra(NamedTuple):
    """An extra of pyproject.toml, the features that need it, and the modules that show whether it is installed."""

    name: str
    needed_by: str
    modules: tuple[str, ...]

    def missing(self) -> list[str]:
        return [name for name in self.modules if find_spec(name) is None]


@dataclass(frozen=True)
class PartOptions:
    """Options of the daemon that a part adds: the base of its dataclass. needs_text: the names of those that only a
    model that writes text can have.
    """

    needs_text: ClassVar[tuple[str, ...]] = ()

    def check_own(self) -> None:
        """Raises UsageError for options of the part that are wrong together."""

    def files(self) -> Sequence[Path]:
        """Returns files that the daemon reads in addition to those that the options name."""
        return ()


@dataclass(frozen=True)
class Manifest:
    """The modules of a part by their use, each below the part's folder; they are imported when they are used.

    name: of the folder. commands: {title in the help: {command: modules that make it}}; to a command that exists
    already the modules add their own. renamed: {old name of a command: its present words}. options: "module:class" of a
    PartOptions. running: "module:function" that takes the daemon's options and returns a RunningPart, or None if they
    leave the part out. learn: {a value of --learn, to which -nightly can be added: the words after "also" that say from
    what the daemon learns then}. device: "module:class" of what the part adds to the answer of /v1/device. status:
    "module:function" that takes this answer and yields (name, text) rows of `edgetune status`. adapter: {a number that
    it adds to the facts of an adapter: what that says}. routes: modules with a `router`. errors: {the beginning of
    paths: "module:function" that takes an error in OpenAI's shape and returns it in that of their clients}. kinds:
    modules that register kinds of jobs. panel: whether the folder has a panel.html and panel.js for the daemon's page.
    extras: of pyproject.toml. around: "module:name" of an AroundOptions (cli/serving.py). purposes: {a purpose of
    uploaded files that are kept as they are: "module:function" that takes a file's name, and raises UsageError for one
    of no use}. library: {a name that `edgetune` has: "module:name"}. packages: further packages that its modules
    import. face: modules that other parts may import.
    """

    name: str
    commands: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    options: str = ""
    running: str = ""
    learn: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    status: str = ""
    adapter: Mapping[str, str] = field(default_factory=dict)
    routes: tuple[str, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    panel: bool = False
    extras: tuple[Extra, ...] = ()
    around: str = ""
    purposes: Mapping[str, str] = field(default_factory=dict)
    library: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    face: tuple[str, ...] = ()

    def load(self, place: str) -> Any:
        """Returns a module of the part, or with "module:name" what it has of this name."""
        module, _, name = place.partition(":")
        found = import_module(self.module(module))
        return getattr(found, name) if name else found

    def module(self, name: str) -> str:
        """Returns the whole name of a module of the part."""
        return f"{FOLDER}.{self.name}.{name}"

    def file(self, name: str) -> Path:
        """Returns the path of a file in the part's folder."""
        return Path(str(import_module(f"{FOLDER}.{self.name}").__file__)).parent / name


@cache
def manifests() -> tuple[Manifest, ...]:
    """Returns the manifests of all parts that are there, by name."""
    names = sorted(module.name for module in iter_modules(import_module(FOLDER).__path__))
    return tuple(import_module(f"{FOLDER}.{name}.part").MANIFEST for name in names)
