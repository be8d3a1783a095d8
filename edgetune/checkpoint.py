"""The state of a run on disk: written beside, flushed, renamed, so that a power cut leaves the old or the new one."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .disk import replaced
from .errors import FormatError

NAME = "checkpoint.npz"


def save(folder: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Writes folder/checkpoint.npz; meta must be JSON. Raises EdgetuneError when the disk refuses."""
    with replaced(folder / NAME) as beside, beside.open("wb") as file:
        np.savez(file, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)  # type: ignore[arg-type]


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Raises FormatError where there is none or it is damaged."""
    path = folder / NAME
    if not path.is_file():
        raise FormatError(f"{folder} holds no {NAME}", "start the run without --resume")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise FormatError(f"{path} is damaged: {error}", "start the run anew in another folder") from error
    return arrays, meta
