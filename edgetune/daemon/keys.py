"""The file of keys that clients may use: a line each, `sha256:HEX name`, and a scope unless that is admin. Empty lines
and those with # are skipped.

A key is 32 random bytes, which cannot be found from its hash, so the hash needs neither salt nor a slow function.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from .. import disk
from ..errors import FormatError, UsageError

PREFIX = "et-"
_NAME = r"[A-Za-z0-9._@-]{1,64}"


class KeyScope(IntEnum):
    """What a key is for; each includes those before it. OPEN: what needs none."""

    OPEN = 0
    ANSWER = 1
    FEEDBACK = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """Its name in files, options and errors."""
        return self.name.lower()


SCOPES = {scope.word: scope for scope in KeyScope if scope}
_LINE = re.compile(rf"sha256:([0-9a-f]{{64}}) ({_NAME})(?: ({'|'.join(SCOPES)}))?")


class ClientKey(NamedTuple):
    """A line of the file."""

    name: str
    scope: KeyScope


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def default_file() -> Path:
    config = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(config) / "edgetune" / "keys"


def read_keys(path: Path) -> dict[str, ClientKey]:
    """Returns the keys by their hashes. Raises FormatError, and UsageError where others may write the file."""
    if not (found := _keys(path)):
        raise UsageError(f"the key file {path} holds no key", "edgetune service key NAME adds one")
    return found


def _keys(path: Path) -> dict[str, ClientKey]:
    try:
        mode = path.stat().st_mode
        text = disk.read_small(path).decode("utf-8", "replace")
    except OSError as error:
        raise UsageError(f"cannot read the key file {path}: {error.strerror}",
                         "edgetune service key NAME makes one") from None
    if mode & 0o022:
        raise UsageError(f"others may write to the key file {path} (mode {mode & 0o777:o})", f"chmod 600 {path}")
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            if not (match := _LINE.fullmatch(line.strip())):
                raise FormatError(f"line {number} of {path} is not `sha256:HEX name [scope]`",
                                  # nor is it shown: it may be a key
                                  "edgetune service key NAME writes such lines")
            found[match[1]] = ClientKey(match[2], SCOPES[match[3] or KeyScope.ADMIN.word])
    return found


def add_key(path: Path, name: str, scope: KeyScope = KeyScope.ADMIN) -> str:
    """Makes a key, adds its hash to the file (mode 0600, made if it is missing) and returns it; the key itself is not
    stored.

    Raises UsageError for a name that is taken or not valid, DiskError.
    """
    if not re.fullmatch(_NAME, name):
        raise UsageError(f"the key's name is {name!r:.80}", "use 1 to 64 letters, digits and . _ @ -")
    before = ""
    if path.exists():
        if name in (key.name for key in _keys(path).values()):
            raise UsageError(f"{path} has a key with the name {name!r}",
                             "choose another, or remove its line, which ends that key")
        before = path.read_text()
    if not path.parent.exists():
        disk.private_folder(path.parent)
    key = PREFIX + secrets.token_urlsafe(32)
    with disk.replaced(path) as beside, os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
                                                  "w") as file:
        file.write(before + "\n" * (before != "" and not before.endswith("\n")))
        file.write(f"sha256:{hash_of(key)} {name}{'' if scope is KeyScope.ADMIN else ' ' + scope.word}\n")
    return key
