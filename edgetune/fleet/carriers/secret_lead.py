"""The lead's part of a round that is summed in secret: the request, the sum, or that the round is dropped.

Each step is a folder that is there whole or not at all, so that a lead that was killed continues. Of a round there is
one request: devices reveal for no second one. When a step's time is over, devices that are missing have dropped out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ...disk import json_text, read_object, replaced
from ...errors import EdgetuneError, FormatError, MismatchError, NumericsError, UsageError
from ...formats.bundle import Bundle
from ..joining.cards import cards_of
from ..joining.members import check_of, is_joined, read_member
from ..rounds.spent import Spent, spent
from ..rounds.task import RoundRecord, Secret, Task, following, records_of
from ..secret.files import Sender, open_masked, open_request
from ..secret.masks import Circle
from ..secret.round import circle_of, gather, least_answers, shares_of, write_next_of_none, write_next_of_sum
from ..sums.screening import LeftOut
from .places import Place

CLOCK = "lead.json"  # when each step of a round began, for a lead that was killed


@dataclass(frozen=True)
class Summed:
    """A round whose sum was taken. dropped: why it was not, "" where it was. left_out, spent: as of Ended."""

    record: RoundRecord
    left_out: list[LeftOut]
    spent: Spent | None
    dropped: str = ""


@dataclass
class SecretLead:
    """devices: answers that are waited for [all]; seconds: for which each step waits; key: signs what it writes."""

    bundle: Bundle
    devices: int | None
    seconds: float
    key: Path | None
    _began: dict[str, float] = field(default_factory=dict)  # steps, by this process' clock
    _readable: set[Path] = field(default_factory=set)  # answers

    def end_round(self, place: Place, task: Task) -> Summed | None:
        """Does the next step of a round; None: it is not over. Raises DiskError, and FormatError where too few devices
        would be in the next round.
        """
        sender = sender_of(place.folder, task)
        if place.is_requested:
            return self._sum(place, task, sender)
        late = self._is_late(place, task, "answers")
        circle = circle_of(task)
        least = least_answers(task)
        wanted = max(least, min(self.devices or len(circle.keys), len(circle.keys)))
        there = sum(self._is_readable(folder, task, circle, sender) for folder in place.answer_folders())
        if there >= (least if late else wanted):
            gather(task, place.answer_folders(), place.request, self.key, sender)
        elif late:
            return self._dropped(place, task, f"{there} devices have answered, and {least} must", [], 0)
        return None

    def _sum(self, place: Place, task: Task, sender: Sender) -> Summed | None:
        late = self._is_late(place, task, "shares")
        circle = circle_of(task)
        request = open_request(place.request, task, circle)
        shares, wrong = shares_of(task, circle, request, place.revealed_folders(), sender)
        is_last = late or len(shares) == len(request.answered)
        if len(shares) < circle.threshold:
            why = f"{len(shares)} devices have revealed their shares, and {circle.threshold} must"
            return self._dropped(place, task, why, wrong, len(request.answered)) if late else None
        try:
            record, left_out = write_next_of_sum(
                task, self.bundle, place.answer_folders(), place.request, place.revealed_folders(), _next(place),
                self.key, sender=sender, following_devices=following_devices(place.folder, task))
        except (MismatchError, NumericsError) as error:
            if is_last or isinstance(error, NumericsError):
                return self._dropped(place, task, error.what, wrong, len(request.answered))
            return None
        return Summed(record, left_out, self._spent(task, record))

    def _dropped(self, place: Place, task: Task, why: str, left_out: Sequence[LeftOut], asked: int) -> Summed:
        record = write_next_of_none(task, self.bundle, why, left_out, asked, _next(place), self.key,
                                    following_devices(place.folder, task))
        return Summed(record, [*left_out], self._spent(task, record), why)

    def _spent(self, task: Task, record: RoundRecord) -> Spent | None:
        return spent(records_of(following(task, record).history, str(task.folder)))

    def _is_readable(self, folder: Path, task: Task, circle: Circle, sender: Sender) -> bool:
        if folder not in self._readable:
            try:
                open_masked(folder, task, circle, sender)
            except EdgetuneError:
                return False  # yet; gather says why
            self._readable.add(folder)
        return True

    def _is_late(self, place: Place, task: Task, step: str) -> bool:
        """Whether a step's time is over, which began when a lead first saw it: this one or, by the note in the round's
        folder, one that was killed.
        """
        now = time.monotonic()
        began = self._began.setdefault(f"{step} {task.name}", now)
        path = place.task.with_name(CLOCK)
        noted = read_object(path, "remove it; then the time begins again") or {}
        if noted.get("task") != task.name:
            noted = {"task": task.name}
        if not isinstance(noted.get(step), int):
            noted[step] = int(time.time())
            with replaced(path) as beside:
                beside.write_text(json_text(noted) + "\n")
        return max(now - began, time.time() - int(noted[step])) >= self.seconds


def sender_of(folder: Path, task: Task) -> Sender:
    """Says whether what is in a device's folder counts, as of secret.files.Sender: it has to be that device's. Where
    devices joined, its key signed it, by check_of; else the key that signed the device's card, where one did.
    """
    assert task.secret
    keys = task.secret.keys
    cards = task.secret.named()
    joined = is_joined(folder)

    def reason(name: str, number: int, signer: str) -> str:
        if joined and read_member(folder, name).secret != keys[number]:
            return f"is not of {name}"
        if cards and cards[number].device != name:
            return f"is of {cards[number].device}"
        if cards and cards[number].key and not joined and signer != cards[number].key:
            return f"is not signed by the key of {name}"
        return ""

    return lambda name: (check_of(folder, name, task.number), partial(reason, name))


def following_devices(folder: Path, task: Task) -> Secret | None:
    """The devices of the next round: those that have joined or published their keys meanwhile; None: those of the task,
    whose keys a file named. Raises FormatError where there are too few.
    """
    if task.secret is None or not task.secret.cards:
        return None
    cards, _ = cards_of(folder)
    n = len(task.secret.keys)
    try:
        return Secret.of(cards, None if task.secret.is_usual else -(-task.secret.threshold * len(cards) // n))
    except UsageError as error:
        raise FormatError(error.what, "let more devices join the fleet") from None


def _next(place: Place) -> Path:
    return Place(place.folder, place.number + 1).task
