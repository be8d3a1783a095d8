"""The rounds in a folder that all devices see, and where the parts of each are.

    round-0001/task/                  the task, which the lead writes
    round-0001/answers/DEVICE/        the answers
    round-0002/task/
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ....errors import FormatError, UsageError, shell_word
from ..signed_folder import is_whole
from .answer import FACTS as ANSWER
from .task import FACTS

NAME = re.compile(r"[\w-]{1,64}")  # of a device, which is that of a folder; a folder that is being made has a dot
_ROUND = re.compile(r"round-(\d{4,9})")


@dataclass(frozen=True)
class RoundPlace:
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
        """Returns the answers that have begun to arrive."""
        found = self.answers.iterdir() if self.answers.is_dir() else ()
        return [path for path in found if NAME.fullmatch(path.name) and is_whole(path, ANSWER)]


def newest(folder: Path) -> RoundPlace:
    """Returns the newest round whose task is there. Raises UsageError if there is no folder, FormatError if it has
    none.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", "name the folder that all devices see")
    there = rounds_of(folder)
    if not there:
        raise FormatError(f"{folder} holds no round-0001/task", f"the lead begins it: edgetune fleet task MODEL -o "
                         f"{shell_word(folder / 'round-0001' / 'task')}")
    return max(there, key=lambda place: place.number)


def rounds_of(folder: Path) -> list[RoundPlace]:
    """Returns the rounds whose task is there."""
    numbers = [int(match[1]) for path in folder.glob("round-*") if (match := _ROUND.fullmatch(path.name))]
    found = [RoundPlace(folder, number) for number in numbers]
    return [place for place in found if is_whole(place.task, FACTS)]


def newest_number(folder: Path) -> int:
    """Returns the number of the newest round; 0: there is none."""
    return max((place.number for place in rounds_of(folder)), default=0)


def check_name(device: str) -> str:
    """Returns a device's name; raises UsageError for one that names no folder."""
    if not NAME.fullmatch(device):
        raise UsageError(f"the device is named {device!r:.80}", "use 1 to 64 letters, digits, - and _")
    return device
