"""The devices that joined a fleet: FOLDER/members/NAME.json, a file for each.

Once the folder members/ exists, what other devices send does not count. It stays with the daemon that serves the fleet:
who can write to it decides who takes part, so no sync may carry it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ....disk import Record, private_folder
from ....errors import EdgetuneError, FormatError, MismatchError, NotFoundError, UsageError, shell_word
from ....formats import signature
from ....formats.signature import Check
from ....persisted import checked_fields, from_json
from ....version import __version__

VERSION = 1
MEMBERS = "members"
REPORTS = Path(MEMBERS, "reports")  # the newest report of each device that counted (rollout/folder.py)
WAITING, APPROVED, REVOKED = STATES = ("waiting", "approved", "revoked")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # of a folder of answers, and of a device in a roll-out
PUBLIC = re.compile("[0-9a-f]{64}")
SHOWN = 16  # digits of a key by which people compare it
MOST = 16 * 1024  # bytes of a file
AGAIN = "remove it, and let the device join again"
ASK = "ask the fleet's owner for a code, and join: edgetune fleet join URL --code CODE"


@dataclass(frozen=True)
class MemberFile:
    """A device. key: its public Ed25519 key, 64 hexadecimal digits. asked_at, decided_at, rotated_at: seconds since
    1970, 0: not yet. key_before: that `key` replaced; it still counts in the round rotated_in, 0: in none.
    """

    device: str
    key: str
    state: str
    asked_at: int
    decided_at: int = 0
    rotated_at: int = 0
    version: int = VERSION
    edgetune: str = __version__
    key_before: str = ""
    rotated_in: int = 0

    @classmethod
    def read_json(cls, found: Mapping[str, Any], source: str) -> MemberFile:
        """Reads it as from_json does, without the second key that earlier versions made for sums in secret."""
        return cls(**checked_fields(cls, {name: found[name] for name in found if name not in ("secret", "signature")},
                                    source))


def is_joined(folder: Path) -> bool:
    """Returns whether only devices that joined take part in the fleet."""
    return (folder / MEMBERS).is_dir()


def begin(folder: Path) -> None:
    """Let only devices that join take part. Raises UsageError if there is no folder, and DiskError."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", "name the folder of the fleet")
    private_folder(folder / MEMBERS)


def read_member(folder: Path, device: str) -> MemberFile:
    """Raises NotFoundError for a device that has not joined, FormatError for a damaged file."""
    return _joined(folder, device, _record(folder, device).read() if NAME.fullmatch(device) else None)


def read_members(folder: Path) -> tuple[dict[str, MemberFile], list[str]]:
    """Returns (the devices by name, why others could not be read)"""
    found: dict[str, MemberFile] = {}
    wrong: list[str] = []
    for path in sorted((folder / MEMBERS).glob("*.json")):
        try:
            found[path.stem] = read_member(folder, path.stem)
        except EdgetuneError as error:
            wrong.append(error.what)
    return found, wrong


def check_asked(folder: Path, device: str, key: str) -> MemberFile | None:
    """Returns the device if it has asked before with this key; None: it may ask. Raises UsageError for a name or a key
    that is none, and MismatchError if another device has the name.
    """
    if not NAME.fullmatch(device):
        raise UsageError(f"the device is named {device!r:.80}",
                         "use 1 to 64 letters, digits, - and _, a letter or digit first")
    if not PUBLIC.fullmatch(key):
        raise UsageError(f"the key {key!r:.80} is no public key", "join with edgetune fleet join")
    before = _record(folder, device).read()
    if before is None:
        return None
    before = _joined(folder, device, before)
    if before.key == key and before.state == REVOKED:
        raise MismatchError(f"the device {device} was revoked", "join with a new key: edgetune fleet join makes one")
    if before.key == key:
        return before
    if before.state != REVOKED:
        raise MismatchError(f"another device has the name {device}", "choose another with --device, or have it revoked")
    return None


def ask(folder: Path, device: str, key: str, now: int) -> MemberFile:
    """Lets a device wait for its approval. A revoked device's name may be taken again. Raises as check_asked."""
    check_asked(folder, device, key)
    private_folder(folder / MEMBERS)

    def asked(_: MemberFile | None) -> MemberFile:
        if before := check_asked(folder, device, key):
            return before
        (folder / REPORTS / f"{device}.json").unlink(missing_ok=True)  # of the device that had the name before
        return MemberFile(device, key, WAITING, now)

    return _record(folder, device).change(asked)


def approve(folder: Path, device: str, now: int) -> MemberFile:
    """Lets a device take part. Raises NotFoundError, and UsageError for one that was revoked."""

    def change(found: MemberFile) -> MemberFile:
        if found.state == REVOKED:
            raise UsageError(f"the device {device} was revoked", "let it join again, with a new code and a new key")
        return found if found.state == APPROVED else replace(found, state=APPROVED, decided_at=now)

    return _changed(folder, device, change)


def revoke(folder: Path, device: str, now: int) -> MemberFile:
    """Lets a device take part no longer, or refuses it. Raises NotFoundError."""
    return _changed(folder, device, lambda found: found if found.state == REVOKED else
                    replace(found, state=REVOKED, decided_at=now))


def rotate(folder: Path, device: str, key: str, now: int, number: int = 0, signed_by: str = "") -> MemberFile:
    """Replaces an approved device's Ed25519 key. number: of the newest round, in which the old key still counts;
    signed_by: the key that asked for it, which must be the device's still [not looked at]. Raises MismatchError for
    another device or key, UsageError for no key.
    """
    if not PUBLIC.fullmatch(key):
        raise UsageError(f"the key {key!r:.80} is no public key", "use edgetune fleet rotate")

    def change(found: MemberFile) -> MemberFile:
        _check_approved(found)
        if signed_by not in ("", found.key):
            raise MismatchError(f"the device {device} has another key by now", "use the newest one")
        return replace(found, key=key, rotated_at=now, key_before=found.key, rotated_in=number)

    return _changed(folder, device, change)


def approved(folder: Path, device: str) -> MemberFile:
    """Returns a device that takes part. Raises NotFoundError, and MismatchError for one that does not."""
    return _check_approved(read_member(folder, device))


def reason_against(folder: Path, device: str) -> str:
    """Returns why what a device sent does not count; "": it does."""
    if not is_joined(folder):
        return ""
    try:
        approved(folder, device)
    except EdgetuneError as error:
        return error.what
    return ""


def check_of(folder: Path, device: str, number: int) -> Check:
    """Returns the check of the signature by which what a device sent for a round counts: its key must sign, or the one
    before in the round in which it was replaced; if no device has to join, any trusted one. Raises as approved.
    """
    if not is_joined(folder):
        return signature.check
    found = approved(folder, device)
    keys = [found.key, *([found.key_before] if found.rotated_in == number > 0 else [])]
    return lambda answer, message: signature.check_by(answer, message, *keys)


def shown_key(key: str) -> str:
    """Returns the first digits of a key, in groups of four, for people who compare them."""
    return " ".join(re.findall("....", key[:SHOWN]))


def _check_approved(found: MemberFile) -> MemberFile:
    """Raises MismatchError for a device that does not take part."""
    if found.state == WAITING:
        raise MismatchError(f"the device {found.device} waits for its approval",
                            f"its owner approves it: edgetune fleet approve FOLDER {shell_word(found.device)}")
    if found.state == REVOKED:
        raise MismatchError(f"the device {found.device} was revoked", ASK)
    return found


def _record(folder: Path, device: str) -> Record[MemberFile]:
    return Record(folder / MEMBERS / f"{device}.json", partial(from_json, MemberFile), AGAIN, MOST)


def _changed(folder: Path, device: str, change: Callable[[MemberFile], MemberFile]) -> MemberFile:
    """Returns the device after a change, which sees the newest of what others changed. Raises as read_member, and
    DiskError.
    """
    read_member(folder, device)  # also if there is no folder yet
    return _record(folder, device).change(lambda found: change(_joined(folder, device, found)))


def _joined(folder: Path, device: str, found: MemberFile | None) -> MemberFile:
    """Returns what a device's file has, checked. Raises as read_member."""
    if found is None:
        raise NotFoundError(f"no device {device!r:.80} has joined the fleet", ASK)
    if (found.version, found.device) != (VERSION, device) or (
            found.state not in STATES or not PUBLIC.fullmatch(found.key)):
        raise FormatError(f"{_record(folder, device).path} is no file of the device {device}", AGAIN)
    return found
