"""Rounds in a folder that all devices see, carried by any sync, a shared disk or a stick: nothing else is sent.

    round-0001/task/                  the task, which the lead writes
    round-0001/answers/DEVICE/        the answers
    round-0002/task/

A device writes into its own answer alone, and the lead writes the tasks, so that no two write the same file. What a
device computes with, and its checkpoints, are in a separate folder. One that is not copied whole yet is looked at
again later.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...disk import new_folder
from ...errors import FormatError, UnansweredError, UsageError
from ...formats.bundle import Bundle
from ...training.callbacks import RunCallbacks
from ..joining.members import reason_against
from ..rounds.answer import FACTS as ANSWER
from ..rounds.answer import AnswerFacts, open_answer
from ..rounds.next_task import Ended, gathered, write_next
from ..rounds.noise import Noise
from ..rounds.task import FACTS, open_task
from ..rounds.train_round import train_round
from ..signed_folder import is_whole
from .waiting import wait

NAME = re.compile(r"[\w-]{1,64}")  # of a device, which is that of a folder; a folder that is being made has a dot
_ROUND = re.compile(r"round-(\d{4,9})")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Place:
    """A round in the folder."""

    folder: Path
    number: int

    @property
    def task(self) -> Path:
        return self.folder / f"round-{self.number:04}" / "task"

    @property
    def answers(self) -> Path:
        return self.folder / f"round-{self.number:04}" / "answers"

    def answer_folders(self) -> list[Path]:
        """The answers that have begun to arrive."""
        found = self.answers.iterdir() if self.answers.is_dir() else ()
        return [path for path in found if NAME.fullmatch(path.name) and is_whole(path, ANSWER)]


def newest(folder: Path) -> Place:
    """The newest round whose task is there. Raises UsageError where there is no folder, FormatError where it has none.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", "name the folder that all devices see")
    there = rounds_of(folder)
    if not there:
        raise FormatError(f"{folder} holds no round-0001/task", f"the lead begins it: edgetune fleet task MODEL -o "
                         f"{folder / 'round-0001' / 'task'}")
    return max(there, key=lambda place: place.number)


def rounds_of(folder: Path) -> list[Place]:
    """The rounds whose task is there."""
    found = [Place(folder, int(match[1])) for path in folder.glob("round-*") if (match := _ROUND.fullmatch(path.name))]
    return [place for place in found if is_whole(place.task, FACTS)]


def check_name(device: str) -> str:
    """Returns a device's name; raises UsageError for one that names no folder."""
    if not NAME.fullmatch(device):
        raise UsageError(f"the device is named {device!r:.80}", "use 1 to 64 letters, digits, - and _")
    return device


@dataclass(frozen=True)
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

    def answer(self, callbacks: RunCallbacks) -> tuple[Place, AnswerFacts] | None:
        """Answers the newest round, and says which; None where this device has already. Raises the errors of open_task
        and train_round.
        """
        place = newest(self.folder)
        out = place.answers / check_name(self.device)
        if out.exists():
            return None
        task = open_task(place.task, self.bundle)
        made = self.work / task.name[:16]
        if not made.exists():
            train_round(task, self.bundle, self.rows, made, self.device, held_out=self.held_out, rank=self.rank,
                        noise=self.noise, key=self.key, callbacks=callbacks, **self.own)
        with new_folder(out) as beside:
            shutil.copytree(made, beside, dirs_exist_ok=True)
        shutil.rmtree(made, ignore_errors=True)
        return place, open_answer(out, task).facts


@dataclass
class Lead:
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
        against = partial(reason_against, self.folder)
        if len(gathered(task, folders, against)[0]) < (quorum if is_late else max(quorum, self.devices)):
            return None
        return write_next(task, self.bundle, folders, Place(self.folder, place.number + 1).task, self.key,
                          against=against)


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
