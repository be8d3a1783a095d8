"""The contract of a smart-home system. Each is a module of this folder with a SYSTEM.

A house learns calls of the tools in tools.py, whose names are those of Home Assistant's intents. A system says in their
terms what it has, offers and returns, and takes their calls as its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol

from ..tools import Call


class HomeSystem(Protocol):
    """schemes: with which the addresses begin that it reads entities from; "": those that no other reads."""

    schemes: tuple[str, ...]

    def entities(self, url: str, token_file: Path | None) -> dict[str, Any]:
        """Returns areas and entities, as a file of entities has them. Raises UsageError for a wrong address or without
        a token, EdgetuneError if the system does not answer.
        """

    def offered(self, tools: Sequence[str]) -> Mapping[str, str]:
        """Returns {name in TOOLS: the tool of a request that does it}; {}: the request is of another system."""

    def call(self, call: Call, tool: str) -> Call:
        """Returns a call as the system takes it. tool: that of `offered`."""

    def meant(self, call: Call) -> Call:
        """Returns the inverse of `call`; a call that it does not know as it is. Of a call that only asks, such as that
        of LIVE_CONTEXT, the arguments may be left out.
        """

    def result(self, content: Any) -> Any:
        """Returns the result of a call by the content of its message: of LIVE_CONTEXT a list of {"names", "domain",
        "state", "areas", "attributes"}, of GET_ITEMS one of {"summary"}, of DATE_TIME {"time", "date", "weekday"}, of
        a call that failed {"error"}.
        """


@cache
def systems() -> tuple[HomeSystem, ...]:
    """Returns all systems, by the names of their modules."""
    names = sorted(module.name for module in iter_modules(import_module(__package__).__path__))
    found = (import_module(f"{__package__}.{name}") for name in names)
    return tuple(module.SYSTEM for module in found if hasattr(module, "SYSTEM"))


def system_at(url: str) -> HomeSystem:
    """Returns the system that reads an address: that of the longest scheme with which it begins."""
    return max(((len(scheme), system) for system in systems() for scheme in system.schemes if url.startswith(scheme)),
               key=lambda one: one[0])[1]


def asking(tools: Sequence[str]) -> tuple[HomeSystem, Mapping[str, str]] | None:
    """Returns the system whose request offers these tools, and what `offered` does; None: it is of none."""
    return next(((system, names) for system in systems() if (names := system.offered(tools))), None)
