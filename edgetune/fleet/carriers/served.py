"""Rounds in a folder that a daemon serves by HTTP: what it says of the newest one, and answers that it takes.

What comes in is checked before it is in the folder: names, sizes, hashes, shapes, and whether the device may. The model
need not be here. The lead looks at the folder as if a sync had brought the answers.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...disk import PIECE, new_folder, read_small
from ...errors import EdgetuneError, FormatError, MismatchError, NotFoundError, TooLargeError, UsageError, size_text
from ...formats import signature
from ..joining.members import check_of, is_joined, reason_against
from ..rounds.answer import FACTS as ANSWER
from ..rounds.answer import UPDATE, most_bytes, open_answer
from ..rounds.task import FACTS, NEEDED, Task, read_task
from ..secret import files
from ..secret.round import circle_of
from ..signed_folder import MAX_FACTS
from .places import Place, check_name, newest
from .secret_lead import sender_of

TASK_FILES = (FACTS, signature.FILE, *NEEDED)  # that a device needs
REQUEST_FILES = (files.REQUEST, files.ARRAYS[files.REQUEST], signature.FILE)
ANSWER_FILES = (ANSWER, UPDATE, signature.FILE)
MASKED_FILES = (files.MASKED, files.ARRAYS[files.MASKED], signature.FILE)
REVEALED_FILES = (files.REVEALED, files.ARRAYS[files.REVEALED], signature.FILE)
_taking = threading.Lock()  # two answers of a device at the same time would be in one folder


@dataclass(frozen=True)
class Taken:
    """What a device sent. task: its name; update: SHA-256 of its arrays. rows, tokens: learned, 0: it is secret."""

    device: str
    task: str
    update: str
    rows: int = 0
    tokens: int = 0


def served_round(folder: Path, device: str) -> dict[str, Any]:
    """round, task: number and name of the newest one, 0 and "": there is none yet; files: of its task, bytes by name;
    answered: whether the device has. Of a round that is summed in secret, request, request_files: name and files of the
    lead's request, "" where there is none yet; revealed: whether the device has revealed its shares.
    """
    found: dict[str, Any] = {"round": 0, "task": "", "files": {}, "answered": False, "request": "", "request_files": {},
                             "revealed": False}
    try:
        place = newest(folder)
        name, there = _named(place.task, TASK_FILES)
        request, asked = _named(place.request, REQUEST_FILES) if place.is_requested else ("", {})
    except (EdgetuneError, OSError):  # it is not copied whole yet
        return found
    own = check_name(device)
    return {"round": place.number, "task": name, "files": there, "request": request, "request_files": asked,
            "answered": _is_there(folder, place.answers / own, place.number),
            "revealed": _is_there(folder, place.revealed / own, place.number)}


def served_task_file(folder: Path, number: int, file: str) -> Path:
    """The path of a file of a task. Raises NotFoundError for any other name."""
    return _served(Place(folder, number).task, file, TASK_FILES, f"the task of round {number}")


def served_request_file(folder: Path, number: int, file: str) -> Path:
    """The path of a file of a request for shares. Raises NotFoundError for any other name."""
    return _served(Place(folder, number).request, file, REQUEST_FILES, f"the request of round {number}")


def take_answer(folder: Path, number: int, device: str, sent: Mapping[str, BinaryIO]) -> Taken:
    """Puts a device's answer into the folder, whole or not at all. sent: open files, by names of ANSWER_FILES, also
    where they are masked.

    Raises NotFoundError for a round that is not the newest, or takes no more answers, MismatchError for a device that
    takes no part, UsageError for an answer that cannot count or is a second one, TooLargeError and DiskError. The same
    answer again is no error.
    """
    with _newest(folder, number, device) as place:
        task = read_task(place.task)
        out = place.answers / device
        names = MASKED_FILES if task.secret else ANSWER_FILES
        if _is_there(folder, out, number):
            _check_same(out / names[0], sent[ANSWER], f"{device} has answered this round")
        elif place.is_requested:
            raise NotFoundError(f"round {number} takes no more answers", "wait for the next one")
        else:
            most = files.most_masked(task) if task.secret else most_bytes(task)
            _take(out, names, most, sent, lambda there: _taken(folder, task, there, device))
        return _taken(folder, task, out, device)


def take_revealed(folder: Path, number: int, device: str, sent: Mapping[str, BinaryIO]) -> Taken:
    """Puts what a device reveals for the request of a round into the folder. Arguments and errors as of take_answer."""
    with _newest(folder, number, device) as place:
        task = read_task(place.task)
        if not (task.secret and place.is_requested):
            raise NotFoundError(f"round {number} asks for no shares", "ask for the round again")
        request = files.open_request(place.request, task, circle_of(task))
        out = place.revealed / device

        def revealed(there: Path) -> Taken:
            facts, _ = files.open_revealed(there, task, circle_of(task), request, _sender(folder, task, device))
            return Taken(device, task.name, facts.file)

        if _is_there(folder, out, number):
            _check_same(out / files.REVEALED, sent[ANSWER], f"{device} has revealed its shares")
        else:
            _take(out, REVEALED_FILES, files.most_revealed(request), sent, revealed)
        return revealed(out)


@contextmanager
def _newest(folder: Path, number: int, device: str) -> Iterator[Place]:
    """The newest round, for a device that takes part, while no other answer is taken."""
    if why := reason_against(folder, check_name(device)):
        raise MismatchError(why, "nothing was kept")
    with _taking:
        place = newest(folder)
        if number != place.number:
            raise NotFoundError(f"round {number} has ended, the newest is {place.number}", "ask for the round again")
        yield place


def _taken(folder: Path, task: Task, there: Path, device: str) -> Taken:
    """What an answer says. Raises FormatError, MismatchError or UsageError for one that cannot count."""
    if task.secret:
        masked, _, _ = files.open_masked(there, task, circle_of(task), _sender(folder, task, device))
        return Taken(device, task.name, masked.file)
    facts = open_answer(there, task, check_of(folder, device, task.number)).facts
    if facts.device != device:
        raise UsageError(f"the answer is of {facts.device!r:.70}, sent as {device}", "send it under its own name")
    return Taken(device, task.name, facts.update, facts.rows, facts.tokens)


def _sender(folder: Path, task: Task, device: str) -> files.Sender:
    """Says what sender_of does, for a folder that does not have the device's name yet."""
    return lambda _name: sender_of(folder, task)(device)


def _is_there(folder: Path, out: Path, number: int) -> bool:
    """Whether a device has sent the folder `out` for a round: where devices join, signed by its key."""
    facts = next((out / name for name in (ANSWER, files.MASKED, files.REVEALED) if (out / name).exists()), None)
    if facts is None or not is_joined(folder):
        return out.exists()
    try:
        check_of(folder, out.name, number)(out, read_small(facts, MAX_FACTS))
    except (EdgetuneError, OSError):
        return False
    return True


def _take(out: Path, names: Sequence[str], most: int, sent: Mapping[str, BinaryIO],
          check: Callable[[Path], object]) -> None:
    """Writes what a device sent as the new folder `out`, where `check` does not refuse it. names: of its files, as
    those of ANSWER_FILES; most: bytes of its arrays.
    """
    for left in out.parent.glob(f"{out.name}.*.tmp"):  # of a daemon that was killed
        shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)  # of another in the device's name, or of the device by an earlier key
    with new_folder(out) as beside:
        try:
            for part, name, limit in zip(ANSWER_FILES, names, (MAX_FACTS, most, signature.MAX_BYTES), strict=True):
                if part in sent:
                    _copy(sent[part], beside / name, limit)
            check(beside)
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


def _check_same(there: Path, file: BinaryIO, what: str) -> None:
    """Raises UsageError where a file is another than the one that is there."""
    if file.read(MAX_FACTS + 1) != read_small(there, MAX_FACTS):
        raise UsageError(what, "wait for the next one")


def _named(folder: Path, names: Sequence[str]) -> tuple[str, dict[str, int]]:
    """(the SHA-256 of the first of these files, the bytes of those that are there). Raises OSError."""
    raw = read_small(folder / names[0], MAX_FACTS)
    there = {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}
    return hashlib.sha256(raw).hexdigest(), there


def _served(folder: Path, file: str, names: Sequence[str], whose: str) -> Path:
    path = folder / file
    if file not in names or not path.is_file():
        raise NotFoundError(f"there is no file {file!r:.80} of {whose}", "ask for the round again")
    return path
