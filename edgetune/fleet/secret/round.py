"""A round that is summed in secret: each device masks its update, the aggregator asks for shares, and adds up.

Only the sum of all updates and of their tokens becomes known, so nothing is clipped, screened or measured by device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...adapters.lora import Lora
from ...disk import refuse_existing
from ...errors import EdgetuneError, MismatchError, UsageError
from ...formats.bundle import Bundle
from ...version import __version__
from ..rounds.outcome import outcome_of
from ..rounds.task import RoundRecord, Secret, Task, following, write_task
from ..sums.aggregation import moved, server_step
from ..sums.screening import LeftOut
from .files import (
    VERSION,
    MaskedFacts,
    Request,
    RequestFacts,
    RevealedFacts,
    Sender,
    anybody,
    open_masked,
    open_request,
    open_revealed,
    write_masked,
    write_request,
    write_revealed,
)
from .fixed_point import LIMIT, FixedPoint
from .key import load_key, note_revealed
from .masks import Circle, Masked, Member, Revealed, total

MOST_TOKENS = 100_000  # a device that learned more counts as if it were these


def circle_of(task: Task) -> Circle:
    """The devices of a task. Raises UsageError for a task that is not summed in secret."""
    if task.secret is None:
        raise UsageError(f"{task.folder} is no task that is summed in secret", "write one with edgetune fleet task "
                         "--secret")
    return Circle(task.secret.public, bytes.fromhex(task.name), task.secret.threshold,
                  tuple(card.device for card in task.secret.named()))


def mask(task: Task, arrays: Mapping[str, NDArray[np.float16]], tokens: int, device: Path, out: Path,
         key: Path | None) -> None:
    """Writes a device's answer. arrays: its update, by projection and half; device: its private key's file. All devices
    weigh the same where the task has noise. Raises MismatchError for a device that is not in the task.
    """
    circle = circle_of(task)
    weight = 1.0 if task.noise else min(tokens, MOST_TOKENS) / MOST_TOKENS
    member = Member(circle, load_key(device))
    update = np.concatenate([arrays[name].reshape(-1) for name in _names(task)])
    words = _point(circle).encode(update, weight)
    write_masked(out, MaskedFacts(VERSION, task.name, task.base.fingerprint, member.number, "", __version__),
                 member.mask(words), key)


def least_answers(task: Task) -> int:
    """The devices that must answer a task."""
    return max(circle_of(task).threshold, task.options.quorum)


def gather(task: Task, folders: Sequence[Path], out: Path, key: Path | None = None,
           sender: Sender = anybody) -> tuple[list[int], list[LeftOut]]:
    """Writes the request for shares, a folder for all devices; returns who answered and what was left out. sender: as
    of open_masked. Raises EdgetuneError where fewer answered than the threshold, UsageError where `out` exists.
    """
    refuse_existing(out)
    masked = _Answers(task, folders, sender)
    left_out = masked.left_out
    answered = sorted(masked)
    if len(answered) < least_answers(task):
        why = "".join(f"; {one.device}: {one.reason}" for one in left_out)
        raise EdgetuneError(f"{len(answered)} devices have answered, and {least_answers(task)} must{why}",
                            "wait for more devices")
    write_request(out, RequestFacts(VERSION, task.name, answered, ""), masked, key)
    return answered, left_out


def reveal(task: Task, request: Path, device: Path, out: Path, key: Path | None = None) -> int:
    """Writes what a device reveals for a request; returns the number of devices whose shares it could not open. Raises
    UsageError where it revealed for another request of this round, or too few answered.
    """
    refuse_existing(out)
    circle = circle_of(task)
    member = Member(circle, load_key(device))
    asked = open_request(request, task, circle)
    sealed = {dealer: asked.sealed[i, member.number].tobytes() for i, dealer in enumerate(asked.answered)}
    revealed = member.reveal(sealed)
    note_revealed(device, task.name, asked.name)
    write_revealed(out, RevealedFacts(VERSION, task.name, asked.name, member.number, ""), circle, asked.answered,
                   revealed, key)
    return len(sealed) - len(revealed.own)


def write_next_of_sum(task: Task, bundle: Bundle, folders: Sequence[Path], request: Path, revealed: Sequence[Path],
                      out: Path, key: Path | None = None, *, sender: Sender = anybody,
                      following_devices: Secret | None = None) -> tuple[RoundRecord, list[LeftOut]]:
    """Adds up the answers in these folders and writes the next task as the new folder `out`; returns the round's record
    and what was left out. sender: as of open_masked. following_devices: of the next round [the same].

    Raises MismatchError where an answer of the request is missing, or too few have revealed.
    """
    refuse_existing(out)
    circle = circle_of(task)
    asked = open_request(request, task, circle)
    masked = _Answers(task, folders, sender)
    if missing := [number for number in asked.answered if number not in masked]:
        raise MismatchError(f"the answer of {circle.name(missing[0])} is missing, and {request.name} names it",
                            "give all answers that were there when the request was made")
    shares, wrong = shares_of(task, circle, asked, revealed, sender)
    masked.keep(asked.answered)
    summed, liars = total(circle, masked, shares)
    left_out = [*masked.left_out, *wrong]
    left_out += [LeftOut(circle.name(number), "it revealed shares that it was not dealt") for number in liars]
    mean, weight = _point(circle).mean(summed)
    pairs, moments = _moved(task, mean)
    tokens = round(weight * (1 if task.noise else MOST_TOKENS))
    record = RoundRecord(task.number, len(asked.answered), len(left_out), tokens, None, None, 0.0, 0.0, masked.bytes,
                         task.bytes, mu_sum=_loss_of(task, len(asked.answered)))
    write_task(out, bundle, pairs, following(task, record, following_devices), moments=moments,
               before=outcome_of(task.number, [], left_out), key=key)
    return record, left_out


def write_next_of_none(task: Task, bundle: Bundle, why: str, left_out: Sequence[LeftOut], asked: int, out: Path,
                       key: Path | None = None, following_devices: Secret | None = None) -> RoundRecord:
    """Writes the next task as the new folder `out`, from where this one began, because its sum cannot be taken. asked:
    the devices that a request named, whose sum some may know; 0: there was none. Returns the round's record.
    """
    refuse_existing(out)
    loss = _loss_of(task, asked) if asked else 0.0
    record = RoundRecord(task.number, 0, len(left_out), 0, None, None, 0.0, 0.0, 0, task.bytes,
                         mu_sum=loss if task.noise else None)
    dropped = LeftOut("all devices", f"the round was dropped: {why}")
    write_task(out, bundle, task.pairs, following(task, record, following_devices), moments=task.moments(),
               before=outcome_of(task.number, [], [dropped, *left_out]), key=key)
    return record


def shares_of(task: Task, circle: Circle, request: Request, revealed: Sequence[Path],
              sender: Sender = anybody) -> tuple[dict[int, Revealed], list[LeftOut]]:
    """(what was revealed for a request, by the device's number; which folders cannot count and why)"""
    shares = {}
    left_out = []
    for folder in sorted(revealed):
        try:
            facts, found = open_revealed(folder, task, circle, request, sender)
        except EdgetuneError as error:
            left_out.append(LeftOut(folder.name, error.what.replace(f"{folder}/", "")))
            continue
        shares[facts.number] = found
    return shares, left_out


def _moved(task: Task, mean: NDArray[np.float64]) -> tuple[Lora, dict[str, NDArray[np.float32]]]:
    """The task's pairs after a step of the mean [V], and the server's moments."""
    step, moments = server_step(task.options, task.moments())
    pairs: Lora = {}
    at = 0
    for name, pair in task.pairs.items():
        shape = getattr(pair, task.half).shape
        change = mean[at:at + int(np.prod(shape))].reshape(shape)
        at += change.size
        pairs[name] = moved(pair, task.half, step(f"{name}.{task.half}", change))
    return pairs, moments()


def _loss_of(task: Task, devices: int) -> float | None:
    """What the noise of that number of devices leaves to whoever sees their sum; None without noise."""
    return 1.0 / (task.noise.multiplier * math.sqrt(devices)) if task.noise else None


class _Answers(Mapping[int, Masked]):
    """The masked answers in some folders, by the device's number, of which one is in memory at a time.

    left_out: what cannot count and why; bytes: of all others.
    """

    def __init__(self, task: Task, folders: Sequence[Path], sender: Sender) -> None:
        self._task = task
        self._circle = circle_of(task)
        self._sender = sender
        self._folders: dict[int, Path] = {}
        self.left_out: list[LeftOut] = []
        self.bytes = 0
        for folder in sorted(folders):
            try:
                facts, _, size = open_masked(folder, task, self._circle, sender)
            except EdgetuneError as error:
                self.left_out.append(LeftOut(folder.name, error.what.replace(f"{folder}/", "")))
                continue
            if facts.number in self._folders:
                self.left_out.append(LeftOut(folder.name, f"{self._circle.name(facts.number)} has another answer"))
                continue
            self._folders[facts.number] = folder
            self.bytes += size

    def keep(self, numbers: Sequence[int]) -> None:
        self._folders = {number: self._folders[number] for number in numbers}

    def __getitem__(self, number: int) -> Masked:
        return open_masked(self._folders[number], self._task, self._circle, self._sender)[1]

    def __iter__(self) -> Iterator[int]:
        return iter(self._folders)

    def __len__(self) -> int:
        return len(self._folders)


def _names(task: Task) -> list[str]:
    """The names of an update's arrays, in the order in which they are summed."""
    return [f"{name}.{task.half}" for name in task.pairs]


def _point(circle: Circle) -> FixedPoint:
    return FixedPoint(LIMIT, len(circle.keys))
