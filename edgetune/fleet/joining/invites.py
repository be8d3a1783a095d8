"""One-time codes, with which devices ask to join: FOLDER/invites/ID.json, a file for each code.

A code is its id, four letters, and a secret of eight. A wrong secret counts against the code of that id alone, so that
a stranger who guesses does not use up other codes: 5 guesses of 32 ^ 8. The file has the secret's hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...disk import json_text, private_folder, read_object, replaced
from ...errors import MismatchError
from ...persisted import from_json
from .members import MemberFile, ask, begin, check_asked

INVITES = "invites"
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # without I, O, 0 and 1, which look alike
ID, GROUP = 4, 4
SECRET = 8
ATTEMPTS = 5
SECONDS = 3600  # that a code is valid, unless its owner says otherwise
MOST_SECONDS = 30 * 86_400
MOST = 4096  # bytes of a file
AGAIN = "ask the fleet's owner for another code: edgetune fleet invite FOLDER"
_counting = threading.Lock()  # guesses at the same time must not count as one


@dataclass(frozen=True)
class Invite:
    """A code. secret: SHA-256 of its secret. expires_at: seconds since 1970. wrong: guesses so far. key: of the device
    that used it, "": none has.
    """

    secret: str
    expires_at: int
    wrong: int = 0
    key: str = ""


def invite(folder: Path, now: int, seconds: int = SECONDS) -> str:
    """Makes a code for one device, and lets only devices that join take part from now on. Raises UsageError where there
    is no folder, and DiskError.
    """
    begin(folder)
    private_folder(folder / INVITES)
    _remove_old(folder, now)
    while (folder / INVITES / f"{(id := _drawn(ID))}.json").exists():
        pass
    secret = _drawn(SECRET)
    _write(folder, id, Invite(_hash(secret), now + seconds))
    code = id + secret
    return "-".join(code[at:at + GROUP] for at in range(0, len(code), GROUP))


def join(folder: Path, code: str, device: str, key: str, now: int) -> MemberFile:
    """Lets the device that has a code wait for its approval. A device whose answer was lost may ask again.

    Raises MismatchError for a code that is wrong, used or expired, and errors of `members.ask`.
    """
    with _counting:
        id, found = _checked(folder, code, now)
        before = check_asked(folder, device, key)
        if found.key and (before is None or found.key != key):
            raise MismatchError("the code has been used", AGAIN)
        made = ask(folder, device, key, now)
        _write(folder, id, replace(found, key=key))
    return made


def _checked(folder: Path, code: str, now: int) -> tuple[str, Invite]:
    """(id, the code's file) of a code that is right. Raises MismatchError."""
    typed = re.sub("[^A-Z2-9]", "", code.upper())
    id, secret = typed[:ID], typed[ID:]
    found = _read(folder, id)
    is_right = hmac.compare_digest(_hash(secret), found.secret if found else _hash(""))
    if found is None or found.wrong >= ATTEMPTS:
        raise MismatchError("the code is none of this fleet's", AGAIN)
    if not is_right:
        _write(folder, id, replace(found, wrong=found.wrong + 1))
        raise MismatchError("the code is none of this fleet's", f"type it again; after {ATTEMPTS} wrong ones it ends")
    if now >= found.expires_at:
        raise MismatchError("the code has expired", AGAIN)
    return id, found


def _remove_old(folder: Path, now: int) -> None:
    for path in (folder / INVITES).glob("*.json"):
        found = _read(folder, path.stem)
        if found is None or now >= found.expires_at:
            path.unlink(missing_ok=True)


def _read(folder: Path, id: str) -> Invite | None:
    """A code's file; None where there is none of this id. Raises FormatError for a damaged one."""
    path = folder / INVITES / f"{id}.json"
    if not re.fullmatch(f"[{LETTERS}]{{{ID}}}", id):
        return None
    found = read_object(path, "remove it, and make another code", MOST)
    return None if found is None else from_json(Invite, found, str(path))


def _write(folder: Path, id: str, found: Invite) -> None:
    with replaced(folder / INVITES / f"{id}.json") as beside:
        beside.write_text(json_text(asdict(found)) + "\n")


def _drawn(letters: int) -> str:
    return "".join(secrets.choice(LETTERS) for _ in range(letters))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
