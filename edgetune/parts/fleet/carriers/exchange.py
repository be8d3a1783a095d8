"""Rounds in a folder that a server stands before: what it serves and takes, and the copy that a device keeps.

What comes in is checked before it is in the folder: names, sizes, hashes, shapes, and whether the device may. The model
need not be here. The lead looks at the folder as if a sync had brought the answers. A device answers in its copy of the
part of the folder that concerns it, as one that follows a folder, and sends its answer.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ....disk import PIECE, new_folder, read_small, require_room
from ....errors import EdgetuneError, FormatError, MismatchError, NotFoundError, TooLargeError, UsageError, size_text
from ....formats import signature
from ....formats.signature import unchecked
from ....training.callbacks import RunCallbacks
from ..membership.members import check_of, is_joined, reason_against
from ..rounds.answer import FACTS as ANSWER
from ..rounds.answer import UPDATE, most_bytes, open_answer
from ..rounds.member import AnsweredRound, Member
from ..rounds.places import RoundPlace, check_name, newest
from ..rounds.task import ADAPTER, FACTS, MOST_BYTES, NEEDED, RoundTask, open_task, read_task
from ..signed_folder import MAX_FACTS
from .registry import RoundServer

TASK_FILES = (FACTS, signature.FILE, *NEEDED)  # that a device needs
ANSWER_FILES = (ANSWER, UPDATE, signature.FILE)
_taking = threading.Lock()  # two answers of a device at the same time would be in one folder


@dataclass(frozen=True)
class Taken:
    """What a device sent. task: its name; update: SHA-256 of its arrays. rows, tokens: learned."""

    device: str
    task: str
    update: str
    rows: int
    tokens: int


def served_round(folder: Path, device: str) -> dict[str, Any]:
    """round, task: number and name of the newest one, 0 and "": there is none yet; files: of its task, bytes by name;
    answered: whether the device has.
    """
    try:
        place = newest(folder)
        name = hashlib.sha256(read_small(place.task / FACTS, MAX_FACTS)).hexdigest()
        there = {file: (place.task / file).stat().st_size for file in TASK_FILES if (place.task / file).is_file()}
    except (EdgetuneError, OSError):  # it is not copied whole yet
        return {"round": 0, "task": "", "files": {}, "answered": False}
    return {"round": place.number, "task": name, "files": there,
            "answered": _is_there(folder, place.answers / check_name(device), place.number)}


def served_task_file(folder: Path, number: int, file: str) -> Path:
    """Returns the path of a file of a task. Raises NotFoundError for any other name."""
    path = RoundPlace(folder, number).task / file
    if file not in TASK_FILES or not path.is_file():
        raise NotFoundError(f"there is no file {file!r:.80} of the task of round {number}", "ask for the round again")
    return path


def take_answer(folder: Path, number: int, device: str, sent: Mapping[str, BinaryIO]) -> Taken:
    """Puts a device's answer into the folder, whole or not at all. sent: open files, by names of ANSWER_FILES.

    Raises NotFoundError for a round that is not the newest, MismatchError for a device that takes no part, UsageError
    for an answer that cannot count or is a second one, TooLargeError and DiskError. The same answer again is no error.
    """
    if why := reason_against(folder, check_name(device)):
        raise MismatchError(why, "nothing was kept")
    with _taking:
        place = newest(folder)
        if number != place.number:
            raise NotFoundError(f"round {number} has ended, the newest is {place.number}", "ask for the round again")
        task = read_task(place.task)
        out = place.answers / device
        if not _is_there(folder, out, number):
            _take(folder, task, out, sent)
        elif sent[ANSWER].read(MAX_FACTS + 1) != read_small(out / ANSWER, MAX_FACTS):
            raise UsageError(f"{device} has answered this round", "wait for the next one")
        return _taken(folder, task, out, device)


def _taken(folder: Path, task: RoundTask, there: Path, device: str) -> Taken:
    """Returns what an answer says. Raises FormatError, MismatchError or UsageError for one that cannot count."""
    facts = open_answer(there, task, check_of(folder, device, task.number)).facts
    if facts.device != device:
        raise UsageError(f"the answer is of {facts.device!r:.70}, sent as {device}", "send it under its own name")
    return Taken(device, task.name, facts.update, facts.rows, facts.tokens)


def _is_there(folder: Path, out: Path, number: int) -> bool:
    """Returns whether a device has sent the answer `out` to a round: if devices join, signed by its key."""
    if not is_joined(folder):
        return out.exists()
    try:
        check_of(folder, out.name, number)(out, read_small(out / ANSWER, MAX_FACTS))
    except (EdgetuneError, OSError):
        return False
    return True


def _take(folder: Path, task: RoundTask, out: Path, sent: Mapping[str, BinaryIO]) -> None:
    """Writes what a device sent as the new folder `out`, if it can count."""
    for left in out.parent.glob(f"{out.name}.*.tmp"):  # of a daemon that was killed
        shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)  # of another in the device's name, or of the device by an earlier key
    with new_folder(out) as beside:
        try:
            for name, limit in zip(ANSWER_FILES, (MAX_FACTS, most_bytes(task), signature.MAX_BYTES), strict=True):
                if name in sent:
                    _copy(sent[name], beside / name, limit)
            _taken(folder, task, beside, out.name)
        except (FormatError, MismatchError) as error:
            raise UsageError(error.what.replace(f"{beside}/", "").replace(str(beside), "what was sent"),
                             "nothing was kept") from None


def _copy(file: BinaryIO, target: Path, most: int) -> None:
    """Raises TooLargeError for a file of more than `most` bytes."""
    with target.open("wb") as out:
        while piece := file.read(PIECE):
            if out.tell() + len(piece) > most:
                raise TooLargeError(f"{target.name} has more than {size_text(most)}, the most for this round",
                                    "nothing was kept")
            out.write(piece)


@dataclass
class CopyMember:
    """A device that answers each round of a server. member: of the copy in its folder."""

    server: RoundServer
    member: Member
    _known: str = ""

    def answer(self, callbacks: RunCallbacks) -> AnsweredRound | None:
        """Answers the newest round, as Member does. Raises FormatError, too, if there is none, or a newer one has
        begun meanwhile.
        """
        asked = self.server.round(self.member.device, self._known)
        if asked is None:
            return None
        found, tag = asked
        place = fetch(self.server, self.member.folder, found)
        if place is None:
            raise FormatError("the daemon has no round yet", "its lead begins one: edgetune fleet task MODEL -o "
                              "FOLDER/round-0001/task")
        if found["answered"]:
            self._known = tag
            return None
        self.server.rest()
        if not (place.answers / self.member.device).exists():
            self.member.make(place, callbacks)
        return self._sent(place)

    def _sent(self, place: RoundPlace) -> AnsweredRound:
        """Sends the answer that is in the copy. Raises FormatError if it is too late."""
        out = place.answers / self.member.device
        try:
            part = place, open_answer(out, open_task(place.task, self.member.bundle), unchecked).facts
        except EdgetuneError:  # it is made again
            shutil.rmtree(out, ignore_errors=True)
            raise
        try:
            self.server.send(place.number, self.member.device, out)
        except NotFoundError as error:
            shutil.rmtree(out, ignore_errors=True)
            raise FormatError(error.what, error.hint) from None
        return part


def fetch(server: RoundServer, folder: Path, found: Mapping[str, Any]) -> RoundPlace | None:
    """Brings the device's copy of the newest task up to date; None: there is none. Raises FormatError for what the
    daemon said or sent; what is not whole leaves nothing.
    """
    number, name, files = found.get("round"), found.get("task"), found.get("files")
    if number == 0:
        return None
    if not (isinstance(number, int) and 0 < number < 10**9 and isinstance(files, dict) and
            {FACTS, *NEEDED} <= files.keys() <= {*TASK_FILES} and isinstance(found.get("answered"), bool)
            and all(isinstance(size, int) and 0 < size <= MOST_BYTES for size in files.values())):
        raise FormatError("the round that was sent is none", "update edgetune on both sides")
    place = RoundPlace(folder, number)
    if _name_of(place.task / FACTS) != name:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("round-*"):
            shutil.rmtree(old, ignore_errors=True)
        require_room(folder, sum(files.values()))
        with new_folder(place.task) as beside:
            (beside / ADAPTER).mkdir()
            for file, size in files.items():
                server.load(number, file, beside / file, size)
            if _name_of(beside / FACTS) != name:
                raise FormatError(f"the task of round {number} changed while it was loaded", "try again")
    return place


def _name_of(facts: Path) -> str:
    """Returns the name of a task by its facts; "": there is none."""
    try:
        return hashlib.sha256(read_small(facts, MAX_FACTS)).hexdigest()
    except OSError:
        return ""
