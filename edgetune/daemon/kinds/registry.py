"""The kinds of jobs that there are, by the origin of their jobs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, TypeVar

from ...errors import FormatError
from ...manifest import manifests

if TYPE_CHECKING:
    from .base import JobKind

T = TypeVar("T", bound="type[JobKind]")

REGISTERED: dict[str, JobKind] = {}


def register(kind: T) -> T:
    """Registers a kind by its origin. Raises ValueError where another has it."""
    other = REGISTERED.setdefault(kind.origin, kind())
    if (type(other).__module__, type(other).__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(f"{kind.__qualname__} has the origin of {type(other).__qualname__}")
    return kind


def kinds() -> Mapping[str, JobKind]:
    """Returns all kinds; those of this folder and of parts are imported first."""
    _import_all()
    return dict(sorted(REGISTERED.items()))


def kind_of(origin: str) -> JobKind:
    """Returns the kind of an origin. Raises FormatError for an origin that no kind has."""
    if origin not in REGISTERED:  # a process that knows one imports no others
        _import_all()
    if origin not in REGISTERED:
        raise FormatError(f"its origin is {origin!r:.40}, which this edgetune does not know")
    return REGISTERED[origin]


@cache
def _import_all() -> None:
    package = import_module(__package__)
    for module in iter_modules(package.__path__):
        import_module(f"{__package__}.{module.name}")
    for manifest in manifests():
        for name in manifest.kinds:
            manifest.load(name)
