"""An adapter of a path, its facts in an answer, and the zip of its files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import Depends

from ...errors import FormatError
from ..service import Service
from ..state.adapters import RegisteredAdapter
from .completions import TheService


def _id_of(adapter: str, service: TheService) -> str:
    return service.adapters.id_of(adapter)


AnAdapter = Annotated[str, Depends(_id_of)]  # in a path: an adapter's id, or what people call it


def adapter_object(adapter: RegisteredAdapter, service: Service) -> dict[str, Any]:
    """Returns an adapter as the API describes it, with the facts of the daemon's parts."""
    served = service.served
    of_parts = [running.adapter(adapter.id) for running in service.running.values()]
    structured = adapter.id in served.adapters() and bool(served.grammar_of(adapter.id))
    return {**vars(adapter), "name": adapter.name or None, "structured": structured,
            "probation": service.probations.facts(adapter),
            **{name: fact for facts in of_parts for name, fact in facts.items()}}


_CHUNK = 1 << 18


def zipped(files: Mapping[str, Path | bytes]) -> Iterator[bytes]:
    """The bytes of a zip of these files, by name, stored as they are: weights do not shrink.

    The files are opened at once, so that one which is removed meanwhile is still sent whole. Raises FormatError for one
    that cannot be read.
    """
    sources: dict[str, BinaryIO] = {}
    with ExitStack() as opened:
        for name, content in files.items():
            sources[name] = opened.enter_context(io.BytesIO(content) if isinstance(content, bytes) else _open(content))
        kept = opened.pop_all()
    return _pieces(sources, kept)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}", "restore it from a copy") from None


def _pieces(sources: Mapping[str, BinaryIO], opened: ExitStack) -> Iterator[bytes]:
    sink = _Sink()
    with opened, zipfile.ZipFile(sink, "w") as archive:
        for name, source in sources.items():
            with archive.open(zipfile.ZipInfo(name), "w") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                    yield sink.take()
    yield sink.take()


class _Sink(io.BytesIO):
    """Holds the bytes that a ZipFile writes; to it this is a file that cannot seek."""

    def tell(self) -> int:
        raise OSError

    def take(self) -> bytes:
        found = self.getvalue()
        self.seek(0)
        self.truncate()
        return found
