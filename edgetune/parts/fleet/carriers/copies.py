"""A device whose rounds a RoundServer has: it keeps a copy of the part of the folder that concerns it, answers there as
a device that follows a folder, and sends its answer.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....disk import new_folder, read_small, require_room
from ....errors import EdgetuneError, FormatError, NotFoundError
from ....formats.signature import unchecked
from ....training.callbacks import RunCallbacks
from ..rounds.answer import open_answer
from ..rounds.member import AnsweredRound, Member
from ..rounds.places import RoundPlace
from ..rounds.task import ADAPTER, FACTS, MOST_BYTES, NEEDED, open_task
from ..signed_folder import MAX_FACTS
from .exchange import TASK_FILES
from .registry import RoundServer


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
            part = AnsweredRound(place, open_answer(out, open_task(place.task, self.member.bundle), unchecked).facts)
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
