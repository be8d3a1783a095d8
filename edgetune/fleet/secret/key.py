"""The X25519 key of a device that sums in secret: a PEM file for its owner alone. Next to it is what it revealed, and
which devices it met.

A device that revealed shares twice for one round, of different lists of who answered, could be made to uncover others
(masks.py). So each round's request is noted before anything is revealed, and another one for that round is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...disk import cannot_write, json_text, read_object, read_small, refuse_existing, replaced
from ...errors import FormatError, UnsupportedError, UsageError, install_hint
from ..listed_keys import listed_keys
from .masks import KEY

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

_MAKE = "make one with edgetune fleet key -o KEY"


def make_key(path: Path) -> str:
    """Writes a new private key, which only the owner may read; returns the public one, 64 hexadecimal digits. Raises
    UsageError where the file exists, DiskError, UnsupportedError where cryptography is missing.
    """
    need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    key = X25519PrivateKey.generate()
    write_private(path, key)
    return key.public_key().public_bytes_raw().hex()


def write_private(path: Path, key: X25519PrivateKey | Ed25519PrivateKey) -> None:
    """Writes a private key as a new PEM file, which only the owner may read. Raises UsageError where the file exists,
    and DiskError.
    """
    from cryptography.hazmat.primitives import serialization
    refuse_existing(path)
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption())
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from None


def load_key(path: Path) -> X25519PrivateKey:
    """Raises UsageError for a file that holds no such key, UnsupportedError where cryptography is missing."""
    need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    try:
        key = serialization.load_pem_private_key(read_small(path), None)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", _MAKE) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError(f"{path} holds no key of a device", _MAKE) from None
    if not isinstance(key, X25519PrivateKey):
        raise UsageError(f"{path} holds a key of another kind than X25519", _MAKE)
    return key


def public_keys(path: Path) -> tuple[bytes, ...]:
    """The public keys in a file, one a line; what follows # is for people. Raises UsageError for another line."""
    found = []
    for number, words in listed_keys(path, "write a file with a public key a line"):
        key = " ".join(words)
        if not re.fullmatch(f"[0-9a-f]{{{2 * KEY}}}", key):
            raise UsageError(f"line {number} of {path} is no public key of {2 * KEY} hexadecimal digits",
                             "write what edgetune fleet key printed")
        found.append(bytes.fromhex(key))
    return tuple(sorted(found))


def note_revealed(key: Path, task: str, request: str) -> None:
    """Notes that the shares of a task are revealed for this request. Raises UsageError where they were for another."""
    hint = "mend it; without it this device could be asked twice"
    noted = _noted(key, "revealed", hint)
    if noted.get(task, request) != request:
        raise UsageError(f"this device has revealed its shares of the round {task:.12} for another request",
                         "take part in the next round")
    _note(key, "revealed", {**noted, task: request})


def note_met(key: Path, devices: Sequence[str]) -> list[str]:
    """Notes the keys of devices that this one meets in a round; returns those that it has not met before."""
    noted = _noted(key, "met", "remove it; then all devices are new to this one")
    new = [device for device in devices if device not in noted]
    if new:
        _note(key, "met", {**noted, **dict.fromkeys(new, "")})
    return new


def _noted(key: Path, what: str, hint: str) -> dict[str, str]:
    path = key.with_name(f"{key.name}.{what}")
    noted = read_object(path, hint) or {}
    if not all(isinstance(value, str) for value in noted.values()):
        raise FormatError(f"{path} is not what edgetune wrote", hint)
    return noted


def _note(key: Path, what: str, noted: dict[str, str]) -> None:
    with replaced(key.with_name(f"{key.name}.{what}")) as beside:
        beside.write_text(json_text(noted) + "\n")


def need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise UnsupportedError("sums in secret need the package cryptography", install_hint("sign")) from None
