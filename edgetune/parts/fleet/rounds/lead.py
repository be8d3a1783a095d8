"""The lead of a fleet: it writes the first task, ends rounds, and writes the next task from the answers.

What cannot count is left out and named; the others are aggregated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import median, median_low
from typing import Any

import numpy as np

from ....adapters import store
from ....adapters.lora import Lora, Pair, init_pairs, scale_of
from ....disk import refuse_existing
from ....errors import EdgetuneError, MismatchError, UnsupportedError
from ....formats import signature
from ....formats.bundle import Bundle
from ....formats.signature import Check
from ....models.networks import open_network
from ....objectives.sft import Sft
from ....training.config import TrainConfig
from ....training.sizing import make_plan, objective_for
from ..membership.members import check_of
from ..privacy import NoiseSpent, spent
from .aggregation import HEAVIEST, Aggregate, LeftOut, aggregate
from .answer import RoundAnswer, open_answer
from .options import MEAN, RoundOptions
from .places import RoundPlace, newest
from .reach import check_reach, usual_norm
from .task import (
    MOST_HISTORY,
    OUTCOME_VERSION,
    Outcome,
    RoundRecord,
    RoundTask,
    mean_loss,
    of_round,
    open_task,
    records_of,
    write_task,
)

MOST_KIND = 80  # letters of a device's kind that are kept
CheckOf = Callable[[str], Check]  # of the device of an answer's folder; raises if what it sent does not count


def make_task(bundle: Bundle, folder: Path, config: TrainConfig, options: RoundOptions, *, start: Path | None = None,
              least_rows: int = 1, key: Path | None = None) -> Lora:
    """Writes the task of round 1; returns the pairs that it begins with. config: of each device's run, whose family the
    aggregation decides. start: an adapter to begin from [one that changes nothing, drawn by the seed]. key: of the file
    that signs it.

    Raises UsageError if the folder exists or options do not fit, UnsupportedError for a model that learns labels.
    """
    refuse_existing(folder)
    options.check()
    if objective_for(bundle.gguf).name != Sft.name:
        raise UnsupportedError(f"{bundle.path} is an encoder, and a fleet trains language models",
                               "give a model such as smollm2")
    config = of_round(config, options, 1).check()
    network = open_network(bundle.gguf)
    shapes = network.structure.trained_shapes(make_plan(network, config).run)
    size = config.family.options()
    pairs = init_pairs(shapes, size["rank"], scale_of(size["alpha"], size["rank"]), config.seed)
    if start:
        pairs = _begun(bundle, start, pairs)
    write_task(folder, bundle, pairs, config, options, least_rows=least_rows, key=key)
    return pairs


def _begun(bundle: Bundle, start: Path, drawn: Lora) -> Lora:
    """Returns the pairs of a start adapter, at the scale of the task."""
    found = store.open_adapter(start, bundle.gguf).pairs
    if {name: pair.a.shape for name, pair in found.items()} != {name: pair.a.shape for name, pair in drawn.items()}:
        ranks = sorted({pair.rank for pair in found.values()})
        rank = next(iter(drawn.values())).rank
        raise MismatchError(f"{start} has {len(found)} pairs of rank {', '.join(map(str, ranks))}, the task has "
                            f"{len(drawn)} of rank {rank}", "give --rank, --targets and --blocks its values")
    return {name: Pair(pair.a, pair.b * np.float32(pair.scale / drawn[name].scale), drawn[name].scale)
            for name, pair in found.items()}


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
    history = [*task.facts.history, asdict(record)][-MOST_HISTORY:]
    ended = Ended(record, found, left_out, counted, spent(records_of(history, str(task.folder))))
    config = replace(of_round(task.config, task.options, task.number + 1),
                     seed=task.config.seed + 1)  # another order of rows
    write_task(out, bundle, found.pairs, config, task.options, number=task.number + 1, least_rows=task.facts.least_rows,
               before=task.name, history=history, moments=found.moments,
               outcome=Outcome(OUTCOME_VERSION, task.number, devices_table(ended), [*map(vars, left_out)]), key=key)
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
    facts = [vars(one.facts) for one in answers]
    mu_answer, mu_sum = _hidden_by_noise(task, found, answers)
    return RoundRecord(task.number, len(answers), left_out, sum(one.tokens for one in answers),
                       mean_loss(facts, "loss_before"), mean_loss(facts, "loss_after"), None if math.isnan(found.missed)
                       else found.missed, found.cut, sum(one.bytes for one in answers), task.bytes, mu_answer, mu_sum)


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
