"""A round that is summed in secret: each device masks its update, the aggregator asks for shares, and adds up.

Only the sum of all updates and of their tokens becomes known, so nothing is clipped, screened or measured by device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...adapters.lora import Lora
from ...disk import refuse_existing
from ...errors import EdgetuneError, MismatchError, UsageError
from ...formats.bundle import Bundle
from ...version import __version__
from ..rounds.outcome import outcome_of
from ..rounds.task import RoundRecord, Task, following, write_task
from ..sums.aggregation import moved, server_step
from ..sums.screening import LeftOut
from .files import (
    VERSION,
    MaskedFacts,
    RequestFacts,
    RevealedFacts,
    open_masked,
    open_request,
    open_revealed,
    write_masked,
    write_request,
    write_revealed,
)
from .fixed_point import LIMIT, FixedPoint
from .key import load_key, note_revealed
from .masks import Circle, Masked, Member, total

if TYPE_CHECKING:
    from ..rounds.train_round import Arrays

MOST_TOKENS = 100_000  # a device that learned more counts as if it were these


def circle_of(task: Task) -> Circle:
    """The devices of a task. Raises UsageError for a task that is not summed in secret."""
    if task.secret is None:
        raise UsageError(f"{task.folder} is no task that is summed in secret", "write one with edgetune fleet task "
                         "--secret")
    return Circle(task.secret.public, bytes.fromhex(task.name), task.secret.threshold)


def check_in_task(task: Task, device: Path | None) -> None:
    """Raises UsageError or MismatchError where a device cannot answer the task, before it trains. device: its key."""
    if device is not None:
        Member(circle_of(task), load_key(device))
    elif task.secret is not None:
        raise UsageError(f"{task.folder} is summed in secret", "give this device's key: edgetune fleet train-round "
                         "--secret KEY")


def mask(task: Task, arrays: Arrays, tokens: int, device: Path, out: Path, key: Path | None) -> None:
    """Writes a device's answer. arrays: its update, by projection and half; device: its private key's file. All devices
    weigh the same where the task has noise. Raises MismatchError for a device that is not in the task.
    """
    circle = circle_of(task)
    weight = 1.0 if task.noise else min(tokens, MOST_TOKENS) / MOST_TOKENS
    member = Member(circle, load_key(device))
    update = np.concatenate([arrays[name].astype(np.float32).reshape(-1) for name in _names(task)])
    words = _point(circle).encode(update, weight)
    write_masked(out, MaskedFacts(VERSION, task.name, task.base.fingerprint, member.number, "", __version__),
                 member.mask(words), key)


def gather(task: Task, folders: Sequence[Path], out: Path, key: Path | None = None) -> tuple[list[int], list[LeftOut]]:
    """Writes the request for shares, a folder for all devices; returns who answered and what was left out. Raises
    EdgetuneError where fewer answered than the threshold, UsageError where `out` exists.
    """
    refuse_existing(out)
    circle = circle_of(task)
    masked, left_out, _ = _masked(task, circle, folders)
    answered = sorted(masked)
    if len(answered) < max(circle.threshold, task.options.quorum):
        why = "".join(f"; {one.device}: {one.reason}" for one in left_out)
        raise EdgetuneError(f"{len(answered)} devices have answered, and {max(circle.threshold, task.options.quorum)} "
                            f"must{why}", "wait for more devices")
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
                      out: Path, key: Path | None = None) -> tuple[RoundRecord, list[LeftOut]]:
    """Adds up the answers in these folders and writes the next task as the new folder `out`; returns the round's record
    and what was left out. Raises MismatchError where an answer of the request is missing, or too few have revealed.
    """
    refuse_existing(out)
    circle = circle_of(task)
    asked = open_request(request, task, circle)
    masked, left_out, up = _masked(task, circle, folders)
    if missing := [number for number in asked.answered if number not in masked]:
        raise MismatchError(f"the answer of device {missing[0]} is missing, and {request} names it",
                            "give all answers that were there when the request was made")
    shares = {}
    for folder in sorted(revealed):
        try:
            number, shares_of = open_revealed(folder, task, circle, asked)
        except EdgetuneError as error:
            left_out.append(LeftOut(folder.name, error.what.replace(f"{folder}/", "")))
            continue
        shares[number] = shares_of
    summed, liars = total(circle, {number: masked[number] for number in asked.answered}, shares)
    left_out += [LeftOut(f"device {number}", "it revealed shares that it was not dealt") for number in liars]
    mean, weight = _point(circle).mean(summed)
    step, moments = server_step(task.options, task.moments())
    pairs: Lora = {}
    at = 0
    for name, pair in task.pairs.items():
        shape = getattr(pair, task.half).shape
        change = mean[at:at + int(np.prod(shape))].reshape(shape)
        at += change.size
        pairs[name] = moved(pair, task.half, step(f"{name}.{task.half}", change))
    tokens = round(weight * (1 if task.noise else MOST_TOKENS))
    loss = 1.0 / (task.noise.multiplier * math.sqrt(len(asked.answered))) if task.noise else None
    record = RoundRecord(task.number, len(asked.answered), len(left_out), tokens, None, None, 0.0, 0.0, up, task.bytes,
                         mu_sum=loss)
    write_task(out, bundle, pairs, following(task, record), moments=moments(),
               before=outcome_of(task.number, [], left_out), key=key)
    return record, left_out


def _masked(task: Task, circle: Circle, folders: Sequence[Path]) -> tuple[dict[int, Masked], list[LeftOut], int]:
    """What devices sent, by number, what is left out and why, and the bytes of all."""
    masked: dict[int, Masked] = {}
    left_out = []
    size = 0
    for folder in sorted(folders):
        try:
            facts, sent, bytes_sent = open_masked(folder, task, circle)
        except EdgetuneError as error:
            left_out.append(LeftOut(folder.name, error.what.replace(f"{folder}/", "")))
            continue
        if facts.number in masked:
            left_out.append(LeftOut(folder.name, f"device {facts.number} has another answer"))
            continue
        masked[facts.number] = sent
        size += bytes_sent
    return masked, left_out, size


def _names(task: Task) -> list[str]:
    """The names of an update's arrays, in the order in which they are summed."""
    return [f"{name}.{task.half}" for name in task.pairs]


def _point(circle: Circle) -> FixedPoint:
    return FixedPoint(LIMIT, len(circle.keys))
