"""The rounds that led to a task, as it tells them, and the answers to it that have arrived. No model is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..signed_folder import is_whole, read_facts
from .outcome import Outcome, read_outcome
from .places import RoundPlace, newest
from .task import FACTS, VERSION, RoundRecord, TaskFacts, records_of

OUTCOMES = 20  # rounds whose outcome is read at most


@dataclass(frozen=True)
class RoundHistory:
    """base: the model's name. number: of the task's round; records: of the rounds before it. arrived: the devices whose
    answers are in the folder; None if only a task was named. outcomes: of the latest rounds, as far as they are in
    the folder.
    """

    base: str
    number: int
    records: list[RoundRecord]
    arrived: list[str] | None
    outcomes: list[Outcome] = field(default_factory=list)


def history_of(path: Path, outcomes: int = OUTCOMES) -> RoundHistory:
    """Returns the history of a task, or of the newest in a folder of rounds. outcomes: rounds whose outcome is read at
    most. Raises the errors of `newest`, read_facts and read_outcome.
    """
    is_task = is_whole(path, FACTS)
    place: RoundPlace | None = None if is_task else newest(path)
    facts, _, _ = read_facts(place.task if place else path, FACTS, TaskFacts, VERSION)
    records = records_of(facts.history, str(path))
    arrived = sorted(folder.name for folder in place.answer_folders()) if place else None
    latest = records[max(len(records) - outcomes, 0):]
    tasks = [RoundPlace(path, one.round + 1).task for one in latest] if place else [path]
    read = [found for task in tasks if (found := read_outcome(task))]
    return RoundHistory(str(facts.base.get("name", "")), facts.round, records, arrived, read)
