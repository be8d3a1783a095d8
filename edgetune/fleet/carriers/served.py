"""Rounds in a folder that a daemon serves by HTTP: what it says of the newest one, and answers that it takes.

What comes in is checked before it is in the folder: names, sizes, hashes, shapes, and whether the device may. The model
need not be here. The lead looks at the folder as if a sync had brought the answers.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ...disk import PIECE, new_folder, read_small
from ...errors import EdgetuneError, FormatError, MismatchError, NotFoundError, TooLargeError, UsageError, size_text
from ...formats import signature
from ..joining.members import reason_against
from ..rounds.answer import FACTS as ANSWER
from ..rounds.answer import UPDATE, VERSION, AnswerFacts, most_bytes, open_answer
from ..rounds.task import FACTS, NEEDED, read_task
from ..signed_folder import MAX_FACTS, read_facts
from .folder import Place, check_name, newest

TASK_FILES = (FACTS, signature.FILE, *NEEDED)  # that a device needs
ANSWER_FILES = (ANSWER, UPDATE, signature.FILE)
_taking = threading.Lock()  # two answers of a device at the same time would be in one folder


def served_round(folder: Path, device: str) -> dict[str, Any]:
    """round, task: number and name of the newest one, 0 and "": there is none yet; files: of its task, bytes by name;
    answered: whether the device has.
    """
    try:
        place = newest(folder)
        raw = read_small(place.task / FACTS, MAX_FACTS)
        files = {name: (place.task / name).stat().st_size for name in TASK_FILES if (place.task / name).is_file()}
    except (EdgetuneError, OSError):  # it is not copied whole yet
        return {"round": 0, "task": "", "files": {}, "answered": False}
    answered = (place.answers / check_name(device)).exists()
    return {"round": place.number, "task": hashlib.sha256(raw).hexdigest(), "files": files, "answered": answered}


def served_task_file(folder: Path, number: int, file: str) -> Path:
    """The path of a file of a task. Raises NotFoundError for any other name."""
    path = Place(folder, number).task / file
    if file not in TASK_FILES or not path.is_file():
        raise NotFoundError(f"there is no file {file!r:.80} of the task of round {number}", "ask for the round again")
    return path


def take_answer(folder: Path, number: int, device: str, files: Mapping[str, BinaryIO]) -> AnswerFacts:
    """Puts a device's answer into the folder, whole or not at all. files: open ones, by names of ANSWER_FILES.

    Raises NotFoundError for a round that is not the newest, MismatchError for a device that takes no part, UsageError
    for an answer that cannot count or is a second one, TooLargeError and DiskError. The same answer again is no error.
    """
    if why := reason_against(folder, check_name(device)):
        raise MismatchError(why, "nothing was kept")
    with _taking:
        place = newest(folder)
        if number != place.number:
            raise NotFoundError(f"round {number} has ended, the newest is {place.number}", "ask for the round again")
        if (place.answers / device).exists():
            return _same(place.answers / device, files[ANSWER])
        for left in place.answers.glob(f"{device}.*.tmp"):  # of a daemon that was killed
            shutil.rmtree(left, ignore_errors=True)
        return _taken(place, device, files)


def _taken(place: Place, device: str, files: Mapping[str, BinaryIO]) -> AnswerFacts:
    task = read_task(place.task)
    limits = {ANSWER: MAX_FACTS, UPDATE: most_bytes(task), signature.FILE: signature.MAX_BYTES}
    with new_folder(place.answers / device) as beside:
        try:
            for name, file in files.items():
                _copy(file, beside / name, limits[name])
            facts = open_answer(beside, task).facts
        except (FormatError, MismatchError) as error:
            raise UsageError(error.what.replace(f"{beside}/", ""), "nothing was kept") from None
        if facts.device != device:
            raise UsageError(f"the answer is of {facts.device!r:.70}, sent as {device}", "send it under its own name")
    return facts


def _copy(file: BinaryIO, target: Path, most: int) -> None:
    """Raises TooLargeError for a file of more than `most` bytes."""
    with target.open("wb") as out:
        while piece := file.read(PIECE):
            if out.tell() + len(piece) > most:
                raise TooLargeError(f"{target.name} has more than {size_text(most)}, the most for this round",
                                    "nothing was kept")
            out.write(piece)


def _same(there: Path, file: BinaryIO) -> AnswerFacts:
    """The facts of an answer that is there. Raises UsageError where this one is another."""
    if file.read(MAX_FACTS + 1) != read_small(there / ANSWER, MAX_FACTS):
        raise UsageError(f"{there.name} has answered this round", "wait for the next one")
    return read_facts(there, ANSWER, AnswerFacts, VERSION)[0]
