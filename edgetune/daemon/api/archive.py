"""A zip that is made while it is sent, so that it needs neither memory nor disk."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from ...errors import FormatError

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
