"""The devices that joined a fleet: FOLDER/members/NAME.json, a file for each.

Once the folder members/ exists, what other devices send does not count. It stays with the daemon that serves the fleet:
who can write to it decides who takes part, so no sync may carry it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...disk import json_text, private_folder, read_object, replaced
from ...errors import EdgetuneError, FormatError, MismatchError, NotFoundError, UsageError, shell_word
from ...formats import signature
from ...formats.signature import Check
from ...persisted import checked_fields, from_json
from ...version import __version__

VERSION = 1
MEMBERS = "members"
REPORTS = Path(MEMBERS, "reports")  # the newest report of each device that counted (rollout/folder.py)
WAITING, APPROVED, REVOKED = STATES = ("waiting", "approved", "revoked")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # of a folder of answers, and of a device in a roll-out
PUBLIC = re.compile("[0-9a-f]{64}")
SHOWN = 16  # digits of a key by which people compare it
MOST = 16 * 1024  # bytes of a file
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
    """Whether only devices that joined take part in the fleet."""
    return (folder / MEMBERS).is_dir()


def begin(folder: Path) -> None:
    """Let only devices that join take part. Raises UsageError where there is no folder, and DiskError."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", "name the folder of the fleet")
    private_folder(folder / MEMBERS)


def read_member(folder: Path, device: str) -> MemberFile:
    """Raises NotFoundError for a device that has not joined, FormatError for a damaged file."""
    path = folder / MEMBERS / f"{device}.json"
    hint = "remove it, and let the device join again"
    if not NAME.fullmatch(device) or (written := read_object(path, hint, MOST)) is None:
        raise NotFoundError(f"no device {device!r:.80} has joined the fleet", ASK)
    found = from_json(MemberFile, written, str(path))
    if (found.version, found.device) != (VERSION, device) or (
            found.state not in STATES or not PUBLIC.fullmatch(found.key)):
        raise FormatError(f"{path} is no file of the device {device}", hint)
    return found


def read_members(folder: Path) -> tuple[dict[str, MemberFile], list[str]]:
    """(the devices by name, why others could not be read)"""
    found: dict[str, MemberFile] = {}
    wrong: list[str] = []
    for path in sorted((folder / MEMBERS).glob("*.json")):
        try:
            found[path.stem] = read_member(folder, path.stem)
        except EdgetuneError as error:
            wrong.append(error.what)
    return found, wrong


def check_asked(folder: Path, device: str, key: str) -> MemberFile | None:
    """The device where it has asked before with this key; None: it may ask. Raises UsageError for a name or a key that
    is none, and MismatchError where another device has the name.
    """
    if not NAME.fullmatch(device):
        raise UsageError(f"the device is named {device!r:.80}",
                         "use 1 to 64 letters, digits, - and _, a letter or digit first")
    if not PUBLIC.fullmatch(key):
        raise UsageError(f"the key {key!r:.80} is no public key", "join with edgetune fleet join")
    try:
        before = read_member(folder, device)
    except NotFoundError:
        return None
    if before.key == key and before.state == REVOKED:
        raise MismatchError(f"the device {device} was revoked", "join with a new key: edgetune fleet join makes one")
    if before.key == key:
        return before
    if before.state != REVOKED:
        raise MismatchError(f"another device has the name {device}", "choose another with --device, or have it revoked")
    return None


def ask(folder: Path, device: str, key: str, now: int) -> MemberFile:
    """Lets a device wait for its approval. A revoked device's name may be taken again. Raises as check_asked."""
    if before := check_asked(folder, device, key):
        return before
    (folder / REPORTS / f"{device}.json").unlink(missing_ok=True)  # of the device that had the name before
    return _write(folder, MemberFile(device, key, WAITING, now))


def approve(folder: Path, device: str, now: int) -> MemberFile:
    """Lets a device take part. Raises NotFoundError, and UsageError for one that was revoked."""
    found = read_member(folder, device)
    if found.state == REVOKED:
        raise UsageError(f"the device {device} was revoked", "let it join again, with a new code and a new key")
    return found if found.state == APPROVED else _write(folder, replace(found, state=APPROVED, decided_at=now))


def revoke(folder: Path, device: str, now: int) -> MemberFile:
    """Lets a device take part no longer, or refuses it. Raises NotFoundError."""
    found = read_member(folder, device)
    return found if found.state == REVOKED else _write(folder, replace(found, state=REVOKED, decided_at=now))


def rotate(folder: Path, device: str, key: str, now: int, number: int = 0) -> MemberFile:
    """Replaces an approved device's Ed25519 key. number: of the newest round, in which the old key still counts. Raises
    MismatchError for another device, UsageError for no key.
    """
    if not PUBLIC.fullmatch(key):
        raise UsageError(f"the key {key!r:.80} is no public key", "use edgetune fleet rotate")
    found = approved(folder, device)
    return _write(folder, replace(found, key=key, rotated_at=now, key_before=found.key, rotated_in=number))


def approved(folder: Path, device: str) -> MemberFile:
    """A device that takes part. Raises NotFoundError, and MismatchError for one that does not."""
    found = read_member(folder, device)
    if found.state == WAITING:
        raise MismatchError(f"the device {device} waits for its approval",
                            f"its owner approves it: edgetune fleet approve FOLDER {shell_word(device)}")
    if found.state == REVOKED:
        raise MismatchError(f"the device {device} was revoked", ASK)
    return found


def reason_against(folder: Path, device: str) -> str:
    """Why what a device sent does not count; "": it does."""
    if not is_joined(folder):
        return ""
    try:
        approved(folder, device)
    except EdgetuneError as error:
        return error.what
    return ""


def check_of(folder: Path, device: str, number: int) -> Check:
    """The check of the signature by which what a device sent for a round counts: its key must sign, or the one before
    in the round in which it was replaced; where no device has to join, any trusted one. Raises as approved.
    """
    if not is_joined(folder):
        return signature.check
    found = approved(folder, device)
    keys = [found.key, *([found.key_before] if found.rotated_in == number > 0 else [])]
    return lambda answer, message: signature.check_by(answer, message, *keys)


def shown_key(key: str) -> str:
    """The first digits of a key, in groups of four, for people who compare them."""
    return " ".join(re.findall("....", key[:SHOWN]))


def _write(folder: Path, found: MemberFile) -> MemberFile:
    private_folder(folder / MEMBERS)
    with replaced(folder / MEMBERS / f"{found.device}.json") as beside:
        beside.write_text(json_text(asdict(found), indent=1) + "\n", encoding="utf-8")
    return found
