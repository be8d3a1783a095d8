"""Uploads in other forms than JSON Lines: tables and arrays of JSON, known by the ending of the client's name and read
as `edgetune train` reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory

from ... import disk
from ...errors import TooLargeError

LINES = ".jsonl"
TABLES = (".csv", ".tsv")
ARRAY = ".json"  # which may be JSON Lines, too
ARRAY_BYTES = 8 << 20  # of an array of JSON at most, which is read as a whole
BOM = b"\xef\xbb\xbf"  # some editors begin a UTF-8 file with it
MIB = 2**20


def form_of(name: str, first: bytes) -> str:
    """Returns the ending of a file that holds rows in this form. first: the first bytes of the file."""
    ending = PurePath(name).suffix.lower()
    is_array = ending == ARRAY and first.removeprefix(BOM).lstrip().startswith(b"[")
    return ending if ending in TABLES or is_array else LINES


def check_length(number: int, nbytes: int, max_body: int) -> None:
    """Raises TooLargeError for a row, in line `number`, of more than `max_body` KiB."""
    if nbytes > max_body << 10:
        raise TooLargeError(f"line {number} has more than {max_body} KiB",
                            "divide the row, or start the daemon with a larger --max-body")


@contextmanager
def spooled(chunks: Iterable[bytes], form: str, max_upload: int) -> Iterator[Path]:
    """Yields the path of a temporary file of these bytes. Raises TooLargeError for more than `max_upload` MiB, and
    DiskError.
    """
    with TemporaryDirectory(prefix="edgetune-") as folder:
        path = Path(folder) / f"rows{form}"
        try:
            with path.open("wb") as out:
                out.writelines(_limited(chunks, form, max_upload))
        except OSError as error:
            raise disk.cannot_write(path, error) from None
        yield path


def _limited(chunks: Iterable[bytes], form: str, max_upload: int) -> Iterator[bytes]:
    limit = min(max_upload * MIB, ARRAY_BYTES) if form == ARRAY else max_upload * MIB
    way_out = "write one JSON object a line" if form == ARRAY else "start the daemon with a larger --max-upload"
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise TooLargeError(f"the file has more than {limit // MIB} MiB", f"divide it, or {way_out}")
        yield chunk
