"""A Hugging Face folder: its JSON files and its weights in safetensors, read strictly; nothing in it is executed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..disk import MIB, read_object
from ..errors import EdgetuneError, FormatError, UnsupportedError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
AGAIN = "download the folder again"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} if there is no file. FormatError if it holds something else."""
    return (read_object(path, AGAIN, 256 * MIB) if path.is_file() else None) or {}


@contextmanager
def as_written(path: Path, library: str) -> Iterator[None]:
    """FormatError where values in a JSON file are not of the types that the library would have written."""
    try:
        yield
    except (EdgetuneError, MemoryError):
        raise
    except Exception as error:  # transformers 5 has its own kinds of errors
        raise FormatError(f"{path} is not as {library} writes it: {error!r:.200}", AGAIN) from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in order. UnsupportedError where there are only PyTorch's."""
    if (folder / INDEX).is_file():
        parts = read_json(folder / INDEX).get("weight_map")
        names = sorted(set(map(str, parts.values()))) if isinstance(parts, dict) else []
        for name in names:
            if name != Path(name).name or not (folder / name).is_file():
                raise FormatError(f"{folder / INDEX} names {name!r}, which is not in the folder", AGAIN)
    else:
        names = [WHOLE] if (folder / WHOLE).is_file() else []
    if names:
        return [folder / name for name in names]
    if any(folder.glob("*.bin")):
        raise UnsupportedError(f"{folder} has its weights only in PyTorch's .bin files, which can run code when read",
                               "take a version with .safetensors, or save it again with safetensors")
    raise FormatError(f"{folder} has no {WHOLE}", "name a folder with a whole checkpoint")
