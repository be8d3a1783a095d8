"""Rounds in a folder that all devices see, carried by any sync, a shared disk or a stick: nothing else is sent.

A device writes into its own answer alone (places.py), and the lead writes the tasks, so that no two write the same
file. What a device computes with, and its checkpoints, are in a separate folder. One that is not copied whole yet is
looked at again later.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ....disk import new_folder
from ....errors import FormatError, UnansweredError
from ....formats.bundle import Bundle
from ....formats.signature import unchecked
from ....training.callbacks import RunCallbacks
from ..membership.members import check_of
from ..pauses import wait
from ..rounds.answer import AnswerFacts, open_answer
from ..rounds.next_task import Ended, gathered, write_next
from ..rounds.noise import Noise
from ..rounds.task import open_task
from ..rounds.train_round import train_round
from .places import RoundPlace, check_name, newest

Say = Callable[[str], object]


@dataclass(frozen=True)
class AnsweredRound:
    """What a device did for a round. facts: of its answer."""

    place: RoundPlace
    facts: AnswerFacts


@dataclass
class Member:
    """A device that answers each round of a folder. work: a separate folder for what it computes with; own: as of
    `train_round`.
    """

    folder: Path
    bundle: Bundle
    rows: Path
    device: str
    work: Path
    held_out: str | None
    rank: int
    noise: Noise | None
    key: Path | None
    own: dict[str, Any]

    def answer(self, callbacks: RunCallbacks) -> AnsweredRound | None:
        """Answers the newest round; None: it is answered. Raises the errors of open_task and train_round."""
        place = newest(self.folder)
        if (place.answers / check_name(self.device)).exists():
            return None
        return self.make(place, callbacks)

    def make(self, place: RoundPlace, callbacks: RunCallbacks) -> AnsweredRound:
        """Makes the answer to a round. Raises as `answer`."""
        out = place.answers / self.device
        task = open_task(place.task, self.bundle)
        made = self.work / f"{check_name(self.device)}-{task.name[:16]}"  # two devices may share a home folder
        if not made.exists():
            train_round(task, self.bundle, self.rows, made, self.device, held_out=self.held_out, rank=self.rank,
                        noise=self.noise, key=self.key, callbacks=callbacks, **self.own)
        with new_folder(out) as beside:
            shutil.copytree(made, beside, dirs_exist_ok=True)
        shutil.rmtree(made, ignore_errors=True)
        return AnsweredRound(place, open_answer(out, task, unchecked).facts)


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
        """Ends the newest round and writes the task of the next one; None where too few have answered yet. Raises the
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


def again(act: Callable[[], bool], seconds: float, should_stop: Callable[[], bool], say: Say) -> None:
    """Calls `act` until it returns True, this often. A folder that is not whole yet is looked at the next time, and a
    daemon that does not answer is asked again.

    Raises Interrupted where should_stop returns True while it waits.
    """
    said = ""
    while True:
        try:
            if act():
                return
        except (FormatError, UnansweredError) as error:
            if str(error) != said:
                said = str(error)
                say(f"waiting: {error.what}")
        wait(seconds, should_stop)
