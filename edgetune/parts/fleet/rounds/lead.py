"""The device that ends the rounds of a folder: from the answers there it writes the next task."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ....formats.bundle import Bundle
from ..membership.members import check_of
from .next_task import Ended, gathered, write_next
from .places import RoundPlace, newest
from .task import open_task


@dataclass
class RoundLead:
    """The device that ends rounds and writes tasks. devices: answers that end a round; after `seconds` the quorum of
    the task is enough. key: signs the tasks.
    """

    folder: Path
    bundle: Bundle
    devices: int
    seconds: float
    key: Path | None
    _seen: tuple[str, float] = ("", 0.0)  # the newest task, and when it was first seen

    def end_round(self) -> Ended | None:
        """Ends the newest round and writes the task of the next one; None if too few have answered yet. Raises the
        errors of open_task and write_next.
        """
        place = newest(self.folder)
        task = open_task(place.task, self.bundle)
        if self._seen[0] != task.name:
            self._seen = (task.name, time.monotonic())
        is_late = time.monotonic() - self._seen[1] >= self.seconds
        quorum = task.options.quorum
        folders = place.answer_folders()
        checks = partial(check_of, self.folder, number=place.number)
        if len(gathered(task, folders, checks)[0]) < (quorum if is_late else max(quorum, self.devices)):
            return None
        return write_next(task, self.bundle, folders, RoundPlace(self.folder, place.number + 1).task, self.key,
                          check_of=checks)
