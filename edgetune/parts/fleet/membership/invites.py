"""One-time codes, with which devices ask to join: FOLDER/invites/ID.json, a file for each code.

A code is its id, four letters, and a secret of eight. A wrong secret counts only against the code of that id, so that
a stranger who guesses does not use up other codes: 5 guesses of 32 ^ 8. The file has the secret's hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ....disk import Record, private_folder
from ....errors import MismatchError
from ....persisted import from_json
from ..uptime import UNKNOWN, Moment, moment
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


@dataclass(frozen=True)
class Invite:
    """A code. secret: SHA-256 of its secret. expires_at: seconds since 1970. wrong: guesses so far. key: of the device
    that used it, "": none has. made: when; seconds: that it is valid from then on.
    """

    secret: str
    expires_at: int
    wrong: int = 0
    key: str = ""
    made: Moment = UNKNOWN
    seconds: int = MOST_SECONDS

    def is_over(self, now: int, at: Moment) -> bool:
        """now: seconds since 1970, by the clock of the machine; at: the moment."""
        age = at.since(self.made)
        return not self.expires_at - self.seconds <= now < self.expires_at if age is None else age >= self.seconds


def invite(folder: Path, now: int, seconds: int = SECONDS, at: Moment | None = None) -> str:
    """Makes a code for one device, and lets only devices that join take part from now on. at: the moment [now]. Raises
    UsageError if there is no folder, and DiskError.
    """
    begin(folder)
    private_folder(folder / INVITES)
    at = at or moment()
    _remove_old(folder, now, at)
    secret = _drawn(SECRET)
    made = Invite(_hash(secret), now + seconds, made=at, seconds=seconds)
    while _record(folder, (id := _drawn(ID))).change(lambda found: found or made) != made:
        pass
    code = id + secret
    return "-".join(code[i:i + GROUP] for i in range(0, len(code), GROUP))


def join(folder: Path, code: str, device: str, key: str, now: int, at: Moment | None = None) -> MemberFile:
    """Lets the device that has a code wait for its approval. A device whose answer was lost may ask again. at: the
    moment [now].

    Raises MismatchError for a code that is wrong, used or expired, and errors of `members.ask`.
    """
    record = _guessed(folder, code)
    joined: list[MemberFile] = []

    def use(found: Invite | None) -> Invite:
        if found is None or found.is_over(now, at or moment()):
            raise MismatchError("the code has expired", AGAIN)
        before = check_asked(folder, device, key)
        if found.key and (before is None or found.key != key):
            raise MismatchError("the code has been used", AGAIN)
        joined.append(ask(folder, device, key, now))
        return replace(found, key=key)

    record.change(use)
    return joined[0]


def _guessed(folder: Path, code: str) -> Record[Invite]:
    """Returns the record of a code, whose secret is right; a wrong one is counted. Raises MismatchError."""
    typed = re.sub("[^A-Z2-9]", "", code.upper())
    id, secret = typed[:ID], _hash(typed[ID:])
    record = _record(folder, id)
    if not re.fullmatch(f"[{LETTERS}]{{{ID}}}", id) or record.read() is None:
        raise MismatchError("the code is none of this fleet's", AGAIN)

    def guess(found: Invite | None) -> Invite:  # under the lock: guesses at the same time must not count as one
        if found is None or found.wrong >= ATTEMPTS:
            raise MismatchError("the code is none of this fleet's", AGAIN)
        return found if is_same(found) else replace(found, wrong=found.wrong + 1)

    def is_same(found: Invite) -> bool:  # in bytes: a damaged file may have any text
        return hmac.compare_digest(secret.encode(), found.secret.encode(errors="surrogatepass"))

    if not is_same(record.change(guess)):
        raise MismatchError("the code is none of this fleet's", f"type it again; after {ATTEMPTS} wrong ones it ends")
    return record


def _remove_old(folder: Path, now: int, at: Moment) -> None:
    for path in (folder / INVITES).glob("*.json"):
        _record(folder, path.stem).change(lambda found: None if found is None or found.is_over(now, at) else found)


def _record(folder: Path, id: str) -> Record[Invite]:
    return Record(folder / INVITES / f"{id}.json", partial(from_json, Invite), "remove it, and make another code", MOST)


def _drawn(letters: int) -> str:
    return "".join(secrets.choice(LETTERS) for _ in range(letters))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
