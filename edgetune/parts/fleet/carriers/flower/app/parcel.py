"""A folder of a round as bytes: an archive of the files that it may have, and of no others."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

TASK_FILES = ("task.json", "adapter/adapter.gguf", "adapter/run.json", "manifest.sig")
"""Of a task all but the server's moments, which devices do not need."""
ANSWER_FILES = ("answer.json", "update.safetensors", "manifest.sig")
MOST_TASK = 512 << 20
HEADERS = 1 << 14  # bytes of an archive that are no contents, at most
_DATE = (1980, 1, 1, 0, 0, 0)  # the same folder has the same bytes


class ParcelError(ValueError):
    """Bytes that are no parcel, or one of other files or more bytes than are allowed."""


def pack(folder: Path, names: Sequence[str]) -> bytes:
    """Returns the files of `names` that the folder has, uncompressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            if (folder / name).is_file():
                archive.writestr(zipfile.ZipInfo(name, _DATE), (folder / name).read_bytes())
    return file.getvalue()


def unpack(data: bytes, folder: Path, names: Sequence[str], most: int) -> None:
    """Writes a parcel as a new folder, whole or not at all. names: of the files that it may have, with / between
    folders; most: bytes of all files. Raises ParcelError.
    """
    if len(data) > most + HEADERS:
        raise ParcelError(f"a parcel has {len(data)} bytes, the most is {most}")
    found = _read(data, names, most)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        for name, content in found.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            with (beside / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _read(data: bytes, names: Sequence[str], most: int) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = archive.infolist()
            _check(files, names, most)
            return {file.filename: archive.read(file) for file in files}
    except ParcelError:
        raise
    except Exception as error:  # zipfile has no one error for what is damaged
        raise ParcelError(f"the bytes are no parcel ({type(error).__name__})") from None


def _check(files: Sequence[zipfile.ZipInfo], names: Sequence[str], most: int) -> None:
    given = [file.filename for file in files]
    if len(set(given)) < len(given) or not given:
        raise ParcelError("a parcel is empty, or has a file twice")
    if other := sorted(set(given) - set(names)):
        raise ParcelError(f"a parcel has the file {other[0]!r:.80}, which none of a round is")
    if any(file.compress_type != zipfile.ZIP_STORED or file.file_size != file.compress_size for file in files):
        raise ParcelError("a parcel is compressed")
    if sum(file.file_size for file in files) > most:
        raise ParcelError(f"the files of a parcel have more than {most} bytes")
