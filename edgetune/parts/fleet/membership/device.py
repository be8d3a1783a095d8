"""What a device keeps: its name, and of each fleet that it joined its key and its name there."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ....disk import new_folder, private_folder, read_small, replaced, state_folder, sync
from ....errors import FormatError, UsageError
from ....formats import signature
from .members import NAME

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NAME_FILE = "fleet-device"
JOINED = "fleet-joined"
FACTS = "device.json"
SIGNING = "signing.pem"
NEXT = "signing.next.pem"  # that replaces it once the daemon knows it


def device_name() -> str:
    """Returns the name of this device for this user if it signs nothing: 16 hexadecimal digits, drawn once and kept,
    which say nothing of their owner. Raises DiskError if it cannot be kept.
    """
    path = state_folder() / NAME_FILE
    try:
        found = read_small(path, 64).decode("ascii", "replace").strip()
    except OSError:
        found = ""
    if found and found.isalnum():
        return found
    private_folder(path.parent)
    found = secrets.token_hex(8)
    with replaced(path) as beside:
        beside.write_text(found + "\n")
    return found


@dataclass(frozen=True)
class Joined:
    """A fleet that the device has joined, or asked to."""

    folder: Path
    device: str

    def key(self) -> Ed25519PrivateKey:
        """Returns the key that signs. Raises UsageError if it is damaged."""
        return signature.private_key(self.folder / SIGNING)

    def public(self) -> str:
        """Returns the public key."""
        return public_of(self.key())

    def next_key(self) -> Ed25519PrivateKey:
        """Returns the key that shall replace the one that signs: the same, until it has."""
        if not (self.folder / NEXT).exists():
            signature.make_key(self.folder / NEXT)
        return signature.private_key(self.folder / NEXT)

    def replace_key(self) -> None:
        """Signs with the next key from now on."""
        (self.folder / NEXT).replace(self.folder / SIGNING)
        sync(self.folder)

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def public_of(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def joined(url: str) -> Joined | None:
    """Returns what the device has of the fleet at a URL; None: it has not joined it. Raises FormatError for a damaged
    file.
    """
    folder = _folder_of(url)
    try:
        device = json.loads(read_small(folder / FACTS))["device"]
        if NAME.fullmatch(device):
            return Joined(folder, device)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    raise FormatError(f"{folder / FACTS} is damaged", f"remove {folder}, and join again")


def name_at(url: str, key_file: Path | None, device: str) -> tuple[str, Joined | None]:
    """Returns (the device's name in the fleet at a URL, what it has joined there; None: a key of the daemon is given,
    or it has joined nothing). device: the name that it shall have, "": its own. Raises UsageError if it joined under
    another.
    """
    found = None if key_file else joined(url)
    if found is None:
        return device or device_name(), None
    if device not in ("", found.device):
        raise UsageError(f"the device is {device}, and it has joined {url} as {found.device}", "leave --device out")
    return found.device, found


def signer_at(url: str, device: str) -> tuple[str, Path]:
    """Returns (the device's name in the fleet at a URL, the file of the key by which it signs there). device: as of
    name_at. Raises UsageError if it has not joined it, and as name_at.
    """
    name, found = name_at(url, None, device)
    if found is None:
        raise UsageError(f"this device has not joined {url}", "join first: edgetune fleet join URL --code CODE")
    return name, found.folder / SIGNING


def check_no_signer(url: str, joined: str) -> None:
    """Raises UsageError for --joined if a device signs by itself."""
    if joined:
        raise UsageError(f"--joined is given, and {url} is a URL, where the device signs by itself",
                         "leave one of them out")


def begin(url: str, device: str) -> Joined:
    """Makes a key for the fleet at a URL. Raises UsageError if there is one, UnsupportedError without cryptography,
    and DiskError.
    """
    folder = _folder_of(url)
    private_folder(folder.parent)
    with new_folder(folder) as beside:
        beside.chmod(0o700)
        signature.make_key(beside / SIGNING)
        (beside / FACTS).write_text(json.dumps({"url": url, "device": device}) + "\n")
    return Joined(folder, device)


def _folder_of(url: str) -> Path:
    return state_folder() / JOINED / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
