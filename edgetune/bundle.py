"""A model ready for edgetune: a folder NAME.edge/ with model.gguf and manifest.json, or a bare .gguf.

manifest.json says what the bundle was made from and holds, under "files", the SHA-256 of every file in it:
{"files": {"model.gguf": "<64 hexadecimal digits>"}, ...}.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import FormatError, UnsupportedError
from .gguf import Gguf, check_model, fingerprint, open_gguf

MODEL, ONNX, TOKENIZER, MANIFEST = "model.gguf", "model.onnx", "tokenizer.gguf", "manifest.json"
MAX_MANIFEST = 2**20
_CHUNK = 2**20
_AGAIN = "copy the bundle again"


@dataclass(frozen=True, eq=False)
class Bundle:
    """`path` is what was opened, folder or file; `fingerprint` is the model's, see gguf.fingerprint."""

    path: Path
    gguf: Gguf
    manifest: dict[str, Any] | None
    fingerprint: str


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle folder or a bare .gguf. FormatError or UnsupportedError unless it is whole and a model.

    In a folder every file that the manifest names is read once, to compare its hash.
    """
    path = Path(path)
    manifest = None
    model = path
    if path.is_dir():
        manifest = open_folder(path)
        model = path / MODEL
        if MODEL not in manifest["files"]:
            raise UnsupportedError(f"{path} holds an ONNX model, here a GGUF is needed",
                                   f"ask it with edgetune generate {path}")
    gguf = open_gguf(model)
    check_model(gguf)
    return Bundle(path, gguf, manifest, fingerprint(gguf))


def open_folder(path: Path) -> dict[str, Any]:
    """The manifest of a bundle in either format, once the hash of every file in it is compared."""
    manifest = _read_manifest(path / MANIFEST)
    for name, wanted in manifest["files"].items():
        if (found := _sha256(path / name)) != wanted:
            raise FormatError(f"{path / name} has the SHA-256 {found}, the manifest says {wanted}", _AGAIN)
    return manifest


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        if (size := path.stat().st_size) > MAX_MANIFEST:
            raise FormatError(f"{path} has {size} bytes, allowed are {MAX_MANIFEST}", _AGAIN)
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}", f"a bundle has {MODEL} and {MANIFEST}") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}", _AGAIN) from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or (MODEL not in files and not {ONNX, TOKENIZER} <= files.keys()):
        raise FormatError(f'{path} lists no {MODEL} under "files"', _AGAIN)
    for name, digest in files.items():
        if name != Path(name).name or not name.isprintable():
            raise FormatError(f"{path} lists {name!r}, allowed are names of files in the folder itself", _AGAIN)
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise FormatError(f"{path} gives {name!r} the SHA-256 {digest!r:.80}, it must be 64 hex digits", _AGAIN)
    return dict(manifest)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise FormatError(f"{path} is missing, but the manifest lists it", _AGAIN)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}", _AGAIN) from None
    return digest.hexdigest()
