"""The library within a daemon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from ...daemon.options import DaemonConfig
from ...daemon.running import Chooser, RunningPart
from ...disk import MIB
from .library import Library
from .options import LibraryOptions

if TYPE_CHECKING:
    from ...daemon.service import Service


class RunningLibrary(RunningPart):
    """The library of a daemon. most: bytes of its adapters; 0: any."""

    library: Library

    def __init__(self, most: int) -> None:
        self._most = most

    def join(self, service: Service) -> None:
        self.library = Library(service.adapters, service.embeddings, service.name, self._most)
        service.adapters.needed.append(self.library.has)

    def models(self) -> Sequence[str]:
        return [self.library.name] if self.library.members() else []

    def chooser(self, model: str) -> Chooser | None:
        return self.library.choose if model == self.library.name else None

    def adapter(self, id: str) -> Mapping[str, int]:
        return {"questions": self.library.questions(id)}

    def start(self) -> None:
        self.library.start()


def running(config: DaemonConfig) -> RunningLibrary:
    """Returns the library of a daemon."""
    return RunningLibrary(cast(LibraryOptions, config).library_size * MIB)


def library_of(service: Service) -> Library:
    """Returns the library of a service."""
    return cast(RunningLibrary, service.running["library"]).library
