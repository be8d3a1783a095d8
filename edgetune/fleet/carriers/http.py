"""Rounds carried by HTTP: a device asks a daemon for the newest task, and sends its answer. It needs no open port.

It keeps a copy of the part of the folder that concerns it, and does what a device does that follows a folder. An idle
device sends one small request at a time, which the daemon answers without a body.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...disk import new_folder, read_small, require_room
from ...errors import EdgetuneError, FormatError, NotFoundError
from ...formats.signature import unchecked
from ...training.callbacks import RunCallbacks
from ..rounds.answer import open_answer
from ..rounds.task import ADAPTER, FACTS, MOST_BYTES, NEEDED, open_task, read_task
from ..secret.files import ARRAYS, REQUEST, most_request, open_masked
from ..secret.round import circle_of
from ..signed_folder import MAX_FACTS
from .folder import Member, Part
from .places import Place
from .served import REQUEST_FILES, TASK_FILES

WRONG = "update edgetune on both sides"


class Server(Protocol):
    """The daemon that serves a folder. All raise UnansweredError where it does not answer."""

    def round(self, device: str, known: str) -> tuple[Mapping[str, Any], str] | None:
        """(what `served_round` returns, its ETag); None: the ETag is still `known`."""

    def load(self, number: int, file: str, target: Path, most: int, of: str = "task") -> None:
        """Writes a file of at most `most` bytes into a new one. of: whether it is of a task, or of a request."""

    def send(self, number: int, device: str, folder: Path, to: str = "answers") -> None:
        """Sends the answer in a folder, or what the device reveals. Raises NotFoundError where that is over."""

    def rest(self) -> None:
        """Takes no memory until the next call."""


@dataclass
class HttpMember:
    """A device that answers each round of a daemon. member: of the copy in its folder."""

    server: Server
    member: Member
    _known: str = ""

    def answer(self, callbacks: RunCallbacks) -> Part | None:
        """Does what the newest round asks of the device, as Member does. Raises FormatError, too, where there is none,
        or a newer one has begun meanwhile.
        """
        asked = self.server.round(self.member.device, self._known)
        if asked is None:
            return None
        found, tag = asked
        place = fetch(self.server, self.member.folder, found)
        if place is None:
            raise FormatError("the daemon has no round yet", "its lead begins one: edgetune fleet task MODEL -o "
                              "FOLDER/round-0001/task")
        part = self.member.left_behind(place) or self._next(place, found, callbacks)
        if part is None:
            self._known = tag
        return part

    def _next(self, place: Place, found: Mapping[str, Any], callbacks: RunCallbacks) -> Part | None:
        if found["answered"]:
            return self._reveal(place, found) if found.get("request") and not found.get("revealed") else None
        if found.get("request"):
            return None  # the answer would be too late
        self.server.rest()
        out = place.answers / self.member.device
        part = Part(place, None, False) if out.exists() else self.member.make(place, callbacks)
        return self._sent(place, part) if part else None

    def _sent(self, place: Place, part: Part) -> Part:
        """Sends the answer that is in the copy."""
        out = place.answers / self.member.device
        try:
            task = open_task(place.task, self.member.bundle)
            if task.secret:
                open_masked(out, task, circle_of(task))
            else:
                part = Part(place, open_answer(out, task, unchecked).facts, True)
        except EdgetuneError:  # it is made again
            shutil.rmtree(out, ignore_errors=True)
            raise
        self._send(place, out, "answers")
        return part

    def _reveal(self, place: Place, found: Mapping[str, Any]) -> Part | None:
        """Reveals what the daemon's request asks for; None: nothing of this device."""
        if self.member.secret is None:
            return None
        fetch_request(self.server, place, found)
        out = place.revealed / self.member.device
        self.server.rest()
        part = Part(place, None, True) if out.exists() else self.member.reveal(place)
        if part:
            self._send(place, out, "revealed")
        return part

    def _send(self, place: Place, folder: Path, to: str) -> None:
        """Raises FormatError where it is too late."""
        try:
            self.server.send(place.number, self.member.device, folder, to)
        except NotFoundError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise FormatError(error.what, error.hint) from None


def fetch(server: Server, folder: Path, found: Mapping[str, Any]) -> Place | None:
    """Brings the device's copy of the newest task up to date; None: there is none. Raises FormatError for what the
    daemon said or sent; what is not whole leaves nothing.
    """
    number, name, files = found.get("round"), found.get("task"), found.get("files")
    if number == 0:
        return None
    if not (isinstance(number, int) and 0 < number < 10**9 and isinstance(files, dict) and
            {FACTS, *NEEDED} <= files.keys() <= {*TASK_FILES} and isinstance(found.get("answered"), bool)
            and all(isinstance(size, int) and 0 < size <= MOST_BYTES for size in files.values())):
        raise FormatError("the round that was sent is none", WRONG)
    place = Place(folder, number)
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


def fetch_request(server: Server, place: Place, found: Mapping[str, Any]) -> None:
    """Brings the device's copy of the newest request for shares. Raises as `fetch`."""
    name, files = found.get("request"), found.get("request_files")
    if _name_of(place.request / REQUEST) == name:
        return
    most = most_request(read_task(place.task))
    if not (isinstance(files, dict) and {REQUEST, ARRAYS[REQUEST]} <= files.keys() <= {*REQUEST_FILES}
            and all(isinstance(size, int) and 0 < size <= most for size in files.values())):
        raise FormatError("the request that was sent is none", WRONG)
    shutil.rmtree(place.request, ignore_errors=True)
    require_room(place.folder, sum(files.values()))
    with new_folder(place.request) as beside:
        for file, size in files.items():
            server.load(place.number, file, beside / file, size, "request")
        if _name_of(beside / REQUEST) != name:
            raise FormatError(f"the request of round {place.number} changed while it was loaded", "try again")


def _name_of(facts: Path) -> str:
    """The name of a task or a request by its facts; "": there is none."""
    try:
        return hashlib.sha256(read_small(facts, MAX_FACTS)).hexdigest()
    except OSError:
        return ""
