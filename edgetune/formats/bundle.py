"""A model ready for edgetune: a folder NAME.edge/ with manifest.json, or a bare .gguf.

The folder holds model.gguf ("format": "gguf"), or model.onnx and its tokenizer.gguf ("onnx"). manifest.json says what
the bundle was made from, how, and what that cost, and has under "files" the SHA-256 of every file that belongs to it:
{"files": {"model.gguf": "<64 hexadecimal digits>"}, "format": "gguf", ...}. manifest.sig may sign it (signature.py).

Other files in the folder are left alone: adapters and notes may be kept there. They are not part of the bundle, and
nothing of edgetune opens a file of a bundle that its manifest does not name.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import disk
from ..disk import read_small, replaced
from ..errors import FormatError, UnsupportedError, shell_word
from ..version import __version__
from . import signature
from .gguf import Gguf, OpenFile, check_network, fingerprint, open_gguf
from .named import find_model
from .slot import opened_side

MODEL = "model.gguf"
ONNX = "model.onnx"
TOKENIZER = "tokenizer.gguf"
MANIFEST = "manifest.json"
FORMATS = {"gguf": (MODEL,), "onnx": (ONNX, TOKENIZER)}  # and the files that each must have
MAX_MANIFEST = 2**20
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_AGAIN = "copy the bundle again"


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened model. path: of the folder or file that was opened. gguf: its tensors and metadata, read from the file
    when used. manifest: of a bundle; None for a bare file. fingerprint: sha256 of the model, which adapters name.
    """

    path: Path
    gguf: Gguf
    manifest: dict[str, Any] | None
    fingerprint: str


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle folder, a slot or a bare .gguf, by its path or a model's name (named.py). FormatError or
    UnsupportedError unless it is whole and a GGUF model; MismatchError where it is not signed by whom this device
    trusts.

    In a folder every file that the manifest names is read once, to compare its hash.
    """
    path = opened_side(find_model(path))
    manifest = None
    _refuse_checkpoint(path)
    if path.is_dir():
        manifest, files = open_files(path)
        if MODEL not in files:
            raise UnsupportedError(f"{path} holds an ONNX model, here a GGUF is needed",
                                   f"ask it with edgetune generate {shell_word(path)}")
        gguf = open_gguf(path / MODEL, files[MODEL])
    else:
        signature.refuse_bare(path)
        gguf = open_gguf(path)
    check_network(gguf)
    return Bundle(path, gguf, manifest, fingerprint(gguf))


def open_folder(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a bundle in either format; as open_files."""
    return open_files(path)[0]


def open_files(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, OpenFile]]:
    """The manifest of a bundle in either format, once its signature and the hash of every file in it are compared; and
    the files that its format needs, open: what was hashed is what is used, whatever their names mean later.

    Raises as open_bundle does; UnsupportedError is for a format that this edgetune does not know.
    """
    path = Path(path)
    _refuse_checkpoint(path)
    raw = _read_manifest(path / MANIFEST)
    signature.check(path, raw)  # before any of it is believed
    manifest = _parse(path / MANIFEST, raw)
    needed = FORMATS[manifest.get("format", "gguf")]
    files = {name: OpenFile(path / name, _AGAIN) for name in needed}
    for name, wanted in manifest["files"].items():
        found = files[name].sha256() if name in files else sha256(path / name)
        if found != wanted:
            raise FormatError(f"{path / name} has the SHA-256 {found}, the manifest says {wanted}", _AGAIN)
    for file in files.values():
        file.check(strictly=True)  # nothing was written while it was hashed
    return manifest, files


def signer(path: Path) -> signature.Signer | None:
    """Who signed the bundle in this folder; None: nobody. Raises as signature.check does."""
    return signature.check(path, _read_manifest(path / MANIFEST))


def write_manifest(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write manifest.json for the files that are in `folder`, and return what it says: facts, edgetune's version, the
    format, and each file's SHA-256 and bytes.

    The same files and facts give the same bytes: keys are sorted, nothing says when or in which folder it was made.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name not in (MANIFEST, signature.FILE))
    manifest = {**to_plain_json(facts), "edgetune": __version__, "files": {path.name: sha256(path) for path in files},
                "sizes": {path.name: path.stat().st_size for path in files}}
    manifest["format"] = next(name for name, needed in FORMATS.items() if manifest["files"].keys() >= set(needed))
    raw = json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"
    if len(raw) > MAX_MANIFEST:
        raise ValueError(f"a manifest of {len(raw)} bytes, the limit is {MAX_MANIFEST}")
    with replaced(folder / MANIFEST) as beside:
        beside.write_bytes(raw)
    return manifest


def write_copy(bundle: Bundle, folder: Path, key: Path | None = None) -> None:
    """Writes a bundle's files into an empty folder. A bare file becomes a bundle. key: signs one that nobody signed.

    Raises FormatError for a file that changed meanwhile, DiskError, and UsageError for no such key.
    """
    if bundle.manifest is None:
        shutil.copyfile(bundle.path, folder / MODEL)
        write_manifest(folder, {"source": bundle.path.name})
    else:
        for name in (*bundle.manifest["files"], MANIFEST, signature.FILE):
            if name != signature.FILE or (bundle.path / name).exists():
                shutil.copyfile(bundle.path / name, folder / name)
    if key is not None and not (folder / signature.FILE).exists():
        signature.sign(folder / MANIFEST, signature.private_key(key))
    found, _ = open_files(folder)
    if bundle.manifest is not None and found != bundle.manifest:
        raise FormatError(f"{bundle.path} changed while it was copied", "copy it again")


def to_plain_json(value: Any) -> Any:
    """A value as JSON that others read: plain numbers, null for NaN and infinity, the name of an absolute path."""
    if isinstance(value, dict):
        return {str(key): to_plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain_json(item) for item in value]
    if isinstance(value, str | os.PathLike):
        return Path(value).name if Path(value).is_absolute() else os.fspath(value)
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_checkpoint(path: Path) -> None:
    """What people have before they have a GGUF: the error says how to make one."""
    if path.is_dir() and (path / "config.json").is_file() and not (path / MANIFEST).exists():
        what = f"{path} is a Hugging Face checkpoint, here a bundle or a GGUF is needed"
        source = path
    elif path.suffix == ".safetensors":
        what = f"{path} is a part of a Hugging Face checkpoint, here a bundle or a GGUF is needed"
        source = path.parent
    elif _HUB_ID.fullmatch(os.fspath(path)) and path.suffix not in (".gguf", ".edge") and not path.parent.exists():
        made = shell_word(f"{path.name}.edge")
        hint = f"edgetune compress {shell_word(path)} -o {made} makes a model of a checkpoint on the hub"
        raise UnsupportedError(f"there is no file or folder {path}",
                               f"{hint}, edgetune pull hf:ORG/REPO:FILE.gguf gets a GGUF")
    else:
        return
    made = shell_word(f"{source.absolute().name}.edge")
    raise UnsupportedError(what, f"make one on a laptop: edgetune compress {shell_word(source)} -o {made}")


def _read_manifest(path: Path) -> bytes:
    try:
        return read_small(path, MAX_MANIFEST)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}",
                          f"a bundle has {MANIFEST} and {MODEL}, or {ONNX} and {TOKENIZER}") from None


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}", _AGAIN) from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    kind = manifest.get("format", "gguf") if isinstance(manifest, dict) else "gguf"
    if not isinstance(kind, str) or kind not in FORMATS:
        raise UnsupportedError(f"{path} is of the format {kind!r:.80}", f"edgetune opens {' and '.join(FORMATS)}")
    missing = [name for name in FORMATS[kind] if not isinstance(files, dict) or name not in files]
    if not isinstance(files, dict) or missing:
        raise FormatError(f'{path} lists no {missing[0]} under "files"', _AGAIN)
    for name, digest in files.items():
        if name in ("", ".", "..") or name != Path(name).name or not name.isprintable():
            raise FormatError(f"{path} lists {name!r:.80}, allowed are names of files in the folder itself", _AGAIN)
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise FormatError(f"{path} gives {name!r} the SHA-256 {digest!r:.80}, it must be 64 hex digits", _AGAIN)
    return dict(manifest)


def sha256(path: Path) -> str:
    """Digests a file's bytes, in hexadecimal digits. FormatError if it is missing or cannot be read."""
    try:
        return disk.sha256(path)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}", "copy it again") from None
