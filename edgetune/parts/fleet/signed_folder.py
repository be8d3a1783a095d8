"""A folder of a round: one JSON file that says what it is, the SHA-256 of each other file, and perhaps a signature.

The JSON file names all other files that are read. manifest.sig signs its bytes, as formats/signature.py has it, so one
signature vouches for the folder. A folder that a sync has not copied whole does not fit its digests, and is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ...disk import MIB, json_text, read_small, sha256
from ...errors import FormatError, size_text
from ...formats import signature
from ...persisted import from_json

T = TypeVar("T")
MAX_FACTS = MIB
AGAIN = "copy the folder again, whole"


def write_facts(folder: Path, name: str, facts: Any, key: Path | None) -> None:
    """Writes the JSON file of a dataclass into a folder that is not yet in place, and signs it if a key is given."""
    path = folder / name
    path.write_text(json_text(asdict(facts), sort_keys=True, indent=1) + "\n", encoding="utf-8")
    if key is not None:
        signature.sign(path, signature.private_key(key))


def read_facts(folder: Path, name: str, kind: type[T], version: int,
               check: signature.Check = signature.check) -> tuple[T, str, str]:
    """Returns (the dataclass, the SHA-256 of its file, the public key that signed it or ""), once the signature is
    checked.

    Raises FormatError for a file that is missing, damaged, too large or of another version, and the errors of `check`.
    """
    path = folder / name
    try:
        raw = read_small(path, MAX_FACTS)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}", AGAIN) from None
    signer = check(folder, raw)  # before any of it is believed
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise FormatError(f"{path} is not JSON", AGAIN) from None
    written = found.get("version") if isinstance(found, Mapping) else None
    if written != version:
        raise FormatError(f"{path} is of version {written!r:.20}, this edgetune reads {version}",
                          "use the same edgetune on all devices of the fleet")
    return from_json(kind, found, str(path)), hashlib.sha256(raw).hexdigest(), signer.public_key if signer else ""


def check_file(path: Path, digest: str, most: int) -> int:
    """Returns the bytes of a file that the JSON file names. Raises FormatError if it is not that file, or has more than
    `most` bytes, which it says before it reads them.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise FormatError(f"{path} has {size_text(size)}, the most is {size_text(most)}",
                              "leave it out; nothing of a round is that large")
        found = sha256(path)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}", AGAIN) from None
    if found != digest:
        raise FormatError(f"{path} has the SHA-256 {found:.12}..., {digest:.12}... is written next to it", AGAIN)
    return size


def is_whole(folder: Path, name: str) -> bool:
    """Returns whether the JSON file is there; a sync may have copied others before it."""
    with suppress(OSError):
        return (folder / name).is_file()
    return False
