"""What happened in the rounds of a folder: a table of them, and questions with what was said about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, printable
from .files import BEGUN, Found, Round, ledger_lines, rounds_of, seconds_of

if TYPE_CHECKING:
    from rich.console import RenderableType

LONGEST = 300  # letters of a text that is shown


@dataclass(frozen=True)
class Told:
    """One question of a round. asked: its text. before: the answers that the model gave by itself, each with whether it
    is right; shown: those behind a labelled row; judgment, revision: of a wrong one, "" without; label: what is
    learned, "" for nothing, weight: how far it is trusted, and by whom; after: the model's answer where a later round
    asked again.
    """

    key: str
    asked: str
    before: list[tuple[str, bool | None]]
    shown: list[tuple[str, bool | None]]
    judgment: str
    revision: str
    label: str
    weight: float
    by: str
    after: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[RenderableType]:
        """Without markup."""
        from rich.text import Text
        marks = {True: "right", False: "wrong", None: "not known"}
        found = [_short(self.asked), f"  judged by {self.by}"]
        found += [f"  {marks[right]}: {_short(text)}" for text, right in self.before]
        found += [f"  {marks[right]}, behind a labelled row: {_short(text)}" for text, right in self.shown]
        named = {"judgment": self.judgment, "revision": self.revision,
                 f"learned with weight {self.weight:.2g}": self.label, "after": self.after}
        found += [f"  {name}: {_short(text)}" for name, text in named.items() if text]
        return [Text(line) for line in found]


def summary(out: Path, watts: float = 0.0) -> dict[str, Any]:
    """{"rounds": [...]}: of each what was asked, right, learned, what the gate said, and what it cost: seconds, tokens
    that were drawn and trained on, and with `watts`, what the machine takes meanwhile, watt-hours. Raises UsageError
    where the folder has no rounds.
    """
    if not (out / BEGUN).exists():
        raise UsageError(f"{out} holds no rounds of a tutor", "name the folder that was given with -o")
    seconds = seconds_of(out)
    found: dict[int, dict[str, Any]] = {}
    for line in ledger_lines(out):
        number = line["round"]
        one = found.setdefault(number, {"round": number, "seconds": 0.0})
        one["seconds"] += seconds.get((number, line["step"]), 0.0)
        one["drawn"] = one.get("drawn", 0) + line.get("drawn", 0)
        one["trained"] = one.get("trained", 0) + line.get("trained", 0)
        one[line["step"]] = {name: value for name, value in line.items() if name not in ("round", "step", "sha256")}
    rounds = list(found.values())
    return {"rounds": [{**one, "watt_hours": watts * one["seconds"] / 3600} for one in rounds] if watts else rounds}


def lines(found: Mapping[str, Any]) -> list[RenderableType]:
    """The rounds as a table, and what the gate said of each."""
    from rich.text import Text

    from ..console import duration, table
    rows = []
    said: list[RenderableType] = []
    for one in found["rounds"]:
        asked = one.get("generate", {}).get("answers")
        rate = one.get("evaluate", {}).get("rate")
        decision = one.get("gate")
        rows.append([str(one["round"]), str(asked or ""), "" if rate is None else f"{rate:.0%}",
                     str(one.get("rows", {}).get("rows", "")), str(one.get("train", {}).get("steps", "")),
                     _rate(decision), "" if decision is None else "published" if decision["passed"] else "no",
                     f"{one['drawn']:,}", f"{one['trained']:,}", duration(one["seconds"]),
                     *([f"{one['watt_hours']:.2g} Wh"] if "watt_hours" in one else [])])
        if decision:
            said.append(Text(f"round {one['round']}: {decision['reason']}"))
        elif stop := one.get("rows", {}).get("stop"):
            said.append(Text(f"round {one['round']}: {stop}"))
    heads = ["round", "answers", "right", "rows", "steps", "held out", "gate", "tokens drawn", "tokens trained", "time",
             "energy"]
    return [table("", heads[:len(rows[0])] if rows else heads, rows), *said]


def _rate(decision: Mapping[str, Any] | None) -> str:
    """Of held-out questions that are right, or what they earn, after the round."""
    return f"{decision['held_out']:.0%}" if decision and "held_out" in decision else ""


@dataclass(frozen=True)
class Retold:
    """A labelled row with other values, as a round learned it."""

    asked: str
    answer: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[RenderableType]:
        """Without markup."""
        from rich.text import Text
        return [Text(_short(self.asked)), Text(f"  told again, learned: {_short(self.answer)}")]


def told(out: Path, number: int | None, most: int) -> tuple[list[Told], list[Retold]]:
    """(questions of a round, those that were corrected first; labelled rows that it learned with other values); None:
    the last round that asked. Raises UsageError.
    """
    rounds = [of for of in rounds_of(out) if of.read("evaluate")]
    wanted = [of for of in rounds if number in (None, of.number)]
    if not wanted:
        if number is None:
            return [], []
        named = ", ".join(str(of.number) for of in rounds) or "none"
        raise UsageError(f"round {number} asked nothing", f"rounds that did: {named}")
    of = wanted[-1]
    again = [Retold(one["asked"], one["text"]) for one in _rows(of) or [] if one.get("asked")]
    return _of_round(of, rounds)[:most], again[:most]


def _rows(of: Round) -> list[Found] | None:
    """What a round learns; None where that is not decided yet."""
    found = of.read("rows")
    return None if found is None else list(found["rows"])


def _of_round(of: Round, rounds: list[Round]) -> list[Told]:
    asked = {one["key"]: one for one in (of.read("generate") or {})["answers"]}
    corrected = {one["key"]: one for one in (of.read("correct") or {"corrections": []})["corrections"]}
    after = _later_answers(of, rounds)
    rows = _rows(of)
    learned = None if rows is None else {(one["key"], one["text"]) for one in rows}
    found = []
    for one in (of.read("evaluate") or {})["evaluated"]:
        key = one["key"]
        correction = corrected.get(key, {})
        said = list(zip(asked[key]["said"], one["right"], strict=True))
        before, shown = ([(answer["text"], right) for answer, right in said if bool(answer.get("shown")) == is_shown]
                         for is_shown in (False, True))
        label = one["label"] if learned is None or (key, one["label"]) in learned else ""
        found.append(Told(key, asked[key].get("asked", key), before, shown, correction.get("judgment", ""),
                          correction.get("revision", ""), label, one["weight"], one["by"], after.get(key, "")))
    return sorted(found, key=lambda one: (not one.revision, not one.label))


def _later_answers(of: Round, rounds: list[Round]) -> dict[str, str]:
    """The first answer to each question that a later round asked again."""
    found: dict[str, str] = {}
    for later in rounds:
        if later.number > of.number:
            answers: Found = later.read("generate") or {"answers": []}
            for one in answers["answers"]:
                found.setdefault(one["key"], one["said"][0]["text"])
    return found


def _short(text: str) -> str:
    return printable(text if len(text) <= LONGEST else text[:LONGEST - 4] + " ...")
