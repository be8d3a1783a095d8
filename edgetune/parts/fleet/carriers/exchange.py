"""Rounds in a folder that a server stands before: what it says of the newest one, and answers that it takes.

What comes in is checked before it is in the folder: names, sizes, hashes, shapes, and whether the device may. The model
need not be here. The lead looks at the folder as if a sync had brought the answers.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ....disk import PIECE, new_folder, read_small
from ....errors import EdgetuneError, FormatError, MismatchError, NotFoundError, TooLargeError, UsageError, size_text
from ....formats import signature
from ..membership.members import check_of, is_joined, reason_against
from ..rounds.answer import FACTS as ANSWER
from ..rounds.answer import UPDATE, most_bytes, open_answer
from ..rounds.places import RoundPlace, check_name, newest
from ..rounds.task import FACTS, NEEDED, RoundTask, read_task
from ..signed_folder import MAX_FACTS

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
