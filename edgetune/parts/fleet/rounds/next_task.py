"""The next task from a task and its answers: what cannot count is left out and named, the others are aggregated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median, median_low
from typing import Any

from ....disk import refuse_existing
from ....errors import EdgetuneError, MismatchError
from ....formats import signature
from ....formats.bundle import Bundle
from ....formats.signature import Check
from ..sums.aggregation import Aggregate, aggregate
from ..sums.screening import HEAVIEST, LeftOut
from .answer import RoundAnswer, open_answer
from .epsilons import NoiseSpent, spent
from .options import MEAN
from .outcome import outcome_of
from .reach import check_reach, usual_norm
from .task import RoundRecord, RoundTask, following, records_of, write_task

MOST_KIND = 80  # letters of a device's kind that are kept
CheckOf = Callable[[str], Check]  # of the device of an answer's folder; raises if what it sent does not count


def any_trusted(_device: str) -> Check:
    """Whoever is trusted may sign."""
    return signature.check


@dataclass(frozen=True, eq=False)
class Ended:
    """A round that ended. left_out: by folder or device, and why; answers: those that count. spent: what noise of all
    rounds hides.
    """

    record: RoundRecord
    aggregate: Aggregate
    left_out: list[LeftOut]
    answers: list[RoundAnswer]
    spent: NoiseSpent | None = None


def write_next(task: RoundTask, bundle: Bundle, folders: Sequence[Path], out: Path, key: Path | None = None, *,
               check_of: CheckOf = any_trusted) -> Ended:
    """Aggregates the answers in these folders, and writes the next task as the new folder `out`.

    An answer that cannot be read, is of another task, or repeats another is left out, which is no error. Raises
    EdgetuneError if fewer count than the quorum, UsageError if `out` exists.
    """
    refuse_existing(out)
    answers, left_out = gathered(task, folders, check_of)
    found = aggregate(answers, task.pairs, task.options, task.number, task.moments(),
                      [f"{one.device}: {one.reason}" for one in left_out], _usual(task, answers))
    counted = [answer for answer in answers if any(one.update is answer for one in found.counted)]
    left_out += found.left_out
    record = record_of(task, found, counted, len(left_out))
    content = following(task, record)
    ended = Ended(record, found, left_out, counted, spent(records_of(content.history, str(task.folder))))
    write_task(out, bundle, found.pairs, content, moments=found.moments,
               before=outcome_of(task.number, devices_table(ended), left_out), key=key)
    return ended


def gathered(task: RoundTask, folders: Sequence[Path],
             check_of: CheckOf = any_trusted) -> tuple[list[RoundAnswer], list[LeftOut]]:
    """Returns (the answers that can count, those that are left out and why). A device counts once: the answer in the
    folder with its name, else the first. An update that several devices sent counts once, by the most tokens that one
    of them says: whose it is cannot be known, so nobody who copies an update can take it away or make it weigh less.
    """
    answers: list[RoundAnswer] = []
    left_out = []
    for folder in sorted(folders):
        try:
            check = check_of(folder.name)
            answer = open_answer(folder, task, check)
            if check is not signature.check and answer.device != folder.name:
                raise MismatchError(f"the answer is of {answer.device!r:.70}", "send it under its own name")
            check_reach(task, answer)
        except EdgetuneError as error:
            left_out.append(LeftOut(folder.name, error.what.replace(f"{folder}/", "")))  # the others see it
        else:
            answers.append(answer)
    counting, repeated = _once_each(answers)
    return counting, left_out + repeated


def _once_each(answers: Sequence[RoundAnswer]) -> tuple[list[RoundAnswer], list[LeftOut]]:
    """Returns (one answer of each device and each update, as `gathered` says; the others)"""
    repeated = []
    of_device: dict[str, RoundAnswer] = {}
    for answer in sorted(answers, key=lambda answer: answer.device != answer.folder.name):
        if of_device.setdefault(answer.device, answer) is not answer:
            repeated.append(LeftOut(answer.folder.name, f"the device {answer.device:.16} has another answer"))
    of_update: dict[str, RoundAnswer] = {}
    for answer in sorted(of_device.values(), key=lambda answer: (-answer.tokens, answer.device)):
        if (counts := of_update.setdefault(answer.facts.update, answer)) is not answer:
            repeated.append(LeftOut(answer.folder.name, f"its update is that of {counts.device:.16}, too, and counts "
                                    "once for both"))
    return [*of_update.values()], repeated


def _usual(task: RoundTask, answers: Sequence[RoundAnswer]) -> Callable[[RoundAnswer], float]:
    """Returns the usual norm of an answer, by the rows that it says; more than HEAVIEST times those of others say no
    more.
    """
    most = HEAVIEST * median_low([answer.facts.rows for answer in answers] or [1])
    norm = cache(partial(usual_norm, task))
    return lambda answer: norm(min(answer.facts.rows, most))


def record_of(task: RoundTask, found: Aggregate, answers: Sequence[RoundAnswer], left_out: int) -> RoundRecord:
    measured = [one.facts for one in answers if one.facts.loss_before is not None and one.facts.loss_after is not None]
    rows = sum(one.held_rows for one in measured)

    def mean(name: str) -> float | None:
        return sum(getattr(one, name) * one.held_rows for one in measured) / rows if rows else None

    mu_answer, mu_sum = _hidden_by_noise(task, found, answers)
    return RoundRecord(task.number, len(answers), left_out, sum(one.tokens for one in answers), mean("loss_before"),
                       mean("loss_after"), None if math.isnan(found.missed) else found.missed, found.cut,
                       sum(one.bytes for one in answers), task.bytes, mu_answer, mu_sum)


def _hidden_by_noise(task: RoundTask, found: Aggregate,
                     answers: Sequence[RoundAnswer]) -> tuple[float | None, float | None]:
    """Returns (mu_answer, mu_sum) of a round's record. A sum that is not weighted, or is scaled by norms, has no bound.
    """
    facts = {answer.device: answer.facts for answer in answers}
    if not facts or not all(one.noise > 0.0 and one.noise_norm > 0.0 for one in facts.values()):
        return None, None
    answer = max(one.noise_norm / one.noise for one in facts.values())
    if task.options.average != MEAN or any(one.scale < 1.0 for one in found.counted):
        return answer, None
    deviation = math.sqrt(sum((one.share * facts[one.update.device].noise) ** 2 for one in found.counted))
    return answer, max(one.share * facts[one.update.device].noise_norm for one in found.counted) / deviation


def devices_table(ended: Ended) -> list[dict[str, Any]]:
    """Returns what is said of each device that counts, by its name."""
    middle = median(one.norm for one in ended.aggregate.counted)
    facts = {answer.device: answer.facts for answer in ended.answers}
    return [{"device": one.update.device, "share": round(one.share, 4), "norm": float(f"{one.norm:.4g}"),
             "of_median": round(one.norm / middle, 2) if middle else 1.0, "clipped": one.scale < 1.0,
             "kind": facts[one.update.device].kind[:MOST_KIND],
             **{name: getattr(facts[one.update.device], name)
                for name in ("rows", "tokens", "held_rows", "loss_before", "loss_after", "noise", "seconds",
                             "peak_mib")}}
            for one in ended.aggregate.counted]
