"""Ed25519 signatures of bundles (RFC 8032), by the package cryptography (extra: hub), which is loaded when needed.

manifest.sig signs the exact bytes of manifest.json, which holds the hash of every other file: one signature vouches for
all. It is JSON: {"algorithm": "ed25519", "public_key": "<64 hex digits>", "signature": "<128 hex digits>"}.

Whom a device believes: the public keys NAME.pub (OpenSSH or PEM, one a file) in ~/.config/edgetune/trusted, or in the
folder that the environment variable EDGETUNE_TRUSTED names. Where there is one, or the variable is set, models are
opened only in bundles that one of them has signed; whatever keeps those keys from being read refuses as well. Where
there is none, a signature is still checked, but says no more than the hashes do: anyone can make a key.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..disk import read_small, refuse_existing, replaced
from ..errors import FormatError, MismatchError, UnsupportedError, UsageError, install_hint, lacking

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FILE = "manifest.sig"
TRUSTED = "EDGETUNE_TRUSTED"
PASSPHRASE = "EDGETUNE_PASSPHRASE"
MAX_BYTES = 2**14  # of a signature or a key
_AGAIN = "copy the bundle again"
_MAKE = "make one with ssh-keygen -t ed25519, or openssl genpkey -algorithm ed25519"


@dataclass(frozen=True)
class Signer:
    """`public_key` in hexadecimal digits; `name` of its file among the trusted ones, "" where none are kept."""

    public_key: str
    name: str


Check = Callable[[Path, bytes], Signer | None]  # (folder, message): who signed it; raises as `check` does


def private_key(path: Path) -> Ed25519PrivateKey:
    """The key in a PEM or OpenSSH file, unlocked by EDGETUNE_PASSPHRASE. Raises UsageError for no such key."""
    _require(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    raw = _read(path)
    passphrase = os.environ.get(PASSPHRASE, "").encode() or None
    ssh = b"OPENSSH PRIVATE KEY" in raw
    load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    try:
        try:
            key = load(raw, None)
        except TypeError:  # it is locked
            key = load(raw, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} holds no private key that can be used ({error!s:.60})",
                         f"{_MAKE}; the passphrase of a locked key is taken from {PASSPHRASE}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} holds a key of another kind than Ed25519", _MAKE)
    return key


def make_key(path: Path) -> None:
    """Writes a new private key as a PEM file, which only its owner may read. Raises UsageError where the file exists,
    DiskError, and UnsupportedError without cryptography.
    """
    _require(path)
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    refuse_existing(path)
    text = Ed25519PrivateKey.generate().private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                                      serialization.NoEncryption())
    with replaced(path) as beside:
        beside.touch(0o600)  # before the key is in it
        beside.write_bytes(text)


def sign(message: Path, key: Ed25519PrivateKey) -> None:
    """Writes manifest.sig next to `message`, over its bytes as they are."""
    made = {"algorithm": "ed25519", "public_key": key.public_key().public_bytes_raw().hex(),
            "signature": key.sign(message.read_bytes()).hex()}
    with replaced(message.with_name(FILE)) as beside:
        beside.write_text(json.dumps(made, sort_keys=True, indent=1) + "\n")


def check(folder: Path, message: bytes) -> Signer | None:
    """Who signed `message`, by manifest.sig in this folder; None: nobody did, and nobody has to.

    Raises FormatError for a signature that is not right, MismatchError where one of the trusted keys had to sign and
    none did, UnsupportedError where cryptography is missing.
    """
    trusted = trusted_keys()
    if not os.path.lexists(folder / FILE):
        if trusted is not None:
            raise MismatchError(f"{folder} is not signed, and only what a key in {trusted_folder()} signed is opened",
                                "sign it where it is made, with --sign KEY")
        return None
    public = _verified(folder / FILE, message)
    if trusted is not None and public not in trusted:
        raise MismatchError(f"{folder} is signed by {public}, which is no key in {trusted_folder()}",
                            "put the signer's public key there as NAME.pub if you trust it")
    return Signer(public, (trusted or {}).get(public, ""))


def check_by(folder: Path, message: bytes, *keys: str) -> Signer:
    """Who signed `message`: the holder of one of these keys, whoever is trusted. keys: 64 hexadecimal digits each.

    Raises MismatchError where another key or none did; the others as of check.
    """
    file = folder / FILE
    if not os.path.lexists(file):
        raise MismatchError(f"{file} is missing, and the key {keys[0]:.16} had to sign", "sign with that key")
    found = _verified(file, message)
    if found not in keys:
        raise MismatchError(f"{file} is of the key {found:.16}, and the key {keys[0]:.16} had to sign",
                            "sign with that key")
    return Signer(found, "")


def unchecked(_folder: Path, _message: bytes) -> None:
    """Nobody, of what this device has made itself."""


def _verified(file: Path, message: bytes) -> str:
    """The public key of a signature that is right."""
    public, signed = _parse(file)
    _require(file)
    if not verifies(public, signed, message):
        raise FormatError(f"{file} is not the signature of the manifest next to it", _AGAIN)
    return public


def verifies(public: str, signed: str, message: bytes) -> bool:
    """Whether the holder of a key signed a message. public, signed: the key and the signature in hexadecimal digits;
    others verify nothing. Raises UnsupportedError where cryptography is missing.
    """
    _require("a signature")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signed), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def refuse_bare(path: Path) -> None:
    """MismatchError for a model outside a bundle where bundles must be signed: nobody vouches for it, and to leave the
    bundle's folder away must not be the way around its signature.
    """
    if trusted_keys() is not None:
        raise MismatchError(f"{path} is no bundle's folder, and only bundles that a key in {trusted_folder()} signed "
                            "are opened", "edgetune compress --sign KEY makes one of a GGUF")


def trusted_folder() -> Path:
    named = os.environ.get(TRUSTED)
    config = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(named) if named else Path(config) / "edgetune" / "trusted"


def trusted_keys() -> dict[str, str] | None:
    """Name by public key (hexadecimal); None: there is none and no folder was named, so nothing has to be signed."""
    named = os.environ.get(TRUSTED)
    try:
        files = sorted(path for path in trusted_folder().iterdir() if path.suffix == ".pub")
    except (FileNotFoundError, RuntimeError):  # RuntimeError: this user has no home
        files = []
    except OSError as error:
        raise UsageError(f"cannot read the folder of trusted keys: {error}", f"name another with {TRUSTED}") from None
    if not files and not named:
        return None
    return {_public_key(path): path.stem for path in files}


def _public_key(path: Path) -> str:
    _require(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    raw = _read(path)
    pem = raw.lstrip().startswith(b"-----")
    load = serialization.load_pem_public_key if pem else serialization.load_ssh_public_key
    try:
        key = load(raw)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} holds no public key ({error!s:.60})", "mend it or remove it") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} holds a key of another kind than Ed25519", "replace it or remove it")
    return key.public_bytes_raw().hex()


def _parse(path: Path) -> tuple[str, str]:
    """Public key and signature, in hexadecimal digits."""
    if not path.is_file():
        raise FormatError(f"{path} is not a regular file", _AGAIN)
    try:
        said: Any = json.loads(_read(path))
        public = said["public_key"]
        signed = said["signature"]
        right = (said["algorithm"] == "ed25519" and re.fullmatch("[0-9a-f]{64}", public)
                 and re.fullmatch("[0-9a-f]{128}", signed))
    except (ValueError, TypeError, KeyError, RecursionError):
        right = None
    if not right:
        raise FormatError(f"{path} is no Ed25519 signature", _AGAIN)
    return public, signed


def _read(path: Path) -> bytes:
    try:
        return read_small(path, MAX_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "name a file with a key or a signature") from None


def _require(what: Path | str) -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise lacking(error) or UnsupportedError(f"{what} cannot be used without the package cryptography",
                               install_hint("hub")) from None
