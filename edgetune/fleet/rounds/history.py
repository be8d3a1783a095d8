"""The rounds that led to a task, as it tells them, and the answers to it that have arrived. No model is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...persisted import from_json
from ..carriers.folder import Place, newest
from ..signed_folder import is_whole, read_facts
from .task import FACTS, VERSION, RoundRecord, TaskFacts


@dataclass(frozen=True)
class History:
    """base: the model's name. number: of the task's round; records: of the rounds before it. arrived: the devices whose
    answers are in the folder; None where a task alone was named.
    """

    base: str
    number: int
    records: list[RoundRecord]
    arrived: list[str] | None


def history_of(path: Path) -> History:
    """The history of a task, or of the newest in a folder of rounds. Raises the errors of `newest` and read_facts."""
    is_task = is_whole(path, FACTS)
    place: Place | None = None if is_task else newest(path)
    facts, _, _ = read_facts(place.task if place else path, FACTS, TaskFacts, VERSION)
    records = [from_json(RoundRecord, one, f"a round in {path}") for one in facts.history]
    arrived = sorted(folder.name for folder in place.answer_folders()) if place else None
    return History(str(facts.base.get("name", "")), facts.round, records, arrived)
