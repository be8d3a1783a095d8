"""The rounds of a folder for people: what each took and decided, and prompts with their answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import UsageError
from .folder import ledger_lines, require_rounds, rounds_of, seconds_of
from .results import Chosen, DrawnAnswers


@dataclass(frozen=True)
class PromptReport:
    """One prompt of a round. answers: each with whether it passes the grader or is the most frequent one. label: the
    answer that is learned, "" for none; rate: the share of answers for it; source: as in `Choice`. after: an answer of
    a later round, "" without.
    """

    key: str
    asked: str
    answers: list[tuple[str, bool]]
    label: str
    rate: float
    source: str
    after: str


def summary(out: Path, watts: float = 0.0) -> dict[str, Any]:
    """{"rounds": [...]}: the facts of each round's steps, its seconds, and the tokens that were drawn and trained on.
    watts: the power of the machine, by which watt-hours are added. Raises UsageError if the folder has no rounds.
    """
    require_rounds(out)
    seconds = seconds_of(out)
    found: dict[int, dict[str, Any]] = {}
    for line in ledger_lines(out):
        number = line["round"]
        one = found.setdefault(number, {"round": number, "seconds": 0.0, "drawn": 0, "trained": 0})
        one["seconds"] += seconds.get((number, line["step"]), 0.0)
        one["drawn"] += line.get("drawn", 0)
        one["trained"] += line.get("trained", 0)
        one[line["step"]] = {name: value for name, value in line.items() if name not in ("round", "step", "sha256")}
    rounds = list(found.values())
    return {"rounds": [{**one, "watt_hours": watts * one["seconds"] / 3600} for one in rounds] if watts else rounds}


def reports(out: Path, number: int | None, count: int) -> list[PromptReport]:
    """Prompts of a round, learned ones first. number None: the last round that chose. Raises UsageError."""
    rounds = {round.number: chosen for round in rounds_of(out) if (chosen := round.read(Chosen))}
    if number is None and not rounds:
        return []
    number = max(rounds) if number is None else number
    if number not in rounds:
        raise UsageError(f"round {number} asked nothing", f"rounds that did: {', '.join(map(str, rounds)) or 'none'}")
    drawn = {round.number: round.read(DrawnAnswers) for round in rounds_of(out)}
    asked = {one.key: one for made in (drawn[number],) if made for one in made.prompts}
    later: dict[str, str] = {}
    for after in (made for n, made in drawn.items() if n > number and made):
        for one in after.prompts:
            later.setdefault(one.key, one.answers[0].text)
    found = [PromptReport(one.key, asked[one.key].asked,
                          [(answer.text, right) for answer, right in
                           zip(asked[one.key].answers, one.right, strict=True)],
                          one.label, one.rate, one.source, later.get(one.key, ""))
             for one in rounds[number].choices]
    return sorted(found, key=lambda one: not one.label)[:count]
