"""A device that answers the rounds of a folder.

It writes into its own answer only (places.py), and the lead writes the tasks, so that no two write the same file. What
a device computes with, and its checkpoints, are in a separate folder.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....disk import new_folder
from ....formats.bundle import Bundle
from ....formats.signature import unchecked
from ....training.callbacks import RunCallbacks
from .answer import AnswerFacts, open_answer
from .noise import Noise
from .places import RoundPlace, check_name, newest
from .task import open_task
from .train_round import train_round


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
