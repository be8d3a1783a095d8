"""Five small data sets of 60 rows to train on and 40 held out, as people would bring them: lab/data/NAME_PART.jsonl.

Held-out rows ask for answers of the same space in other words. `data/test_own_sets.py` says what that means.
"""

from dataclasses import dataclass
from pathlib import Path

from json_lines import read_lines

from edgetune.evaluation.judge import same

FOLDER = Path(__file__).parent / "lab" / "data"
Row = dict[str, str]


@dataclass(frozen=True)
class OwnSet:
    """intents: phrases of which each expected answer has one; an answer with it and no other is right."""

    name: str
    system: str
    intents: tuple[str, ...] = ()

    def path(self, part: str) -> Path:
        """Of the rows to train on ("train") or those held out ("heldout")."""
        return FOLDER / f"{self.name}_{part}.jsonl"

    def rows(self, part: str) -> list[Row]:
        return read_lines(self.path(part))

    def right(self, expected: str, answer: str) -> bool:
        """Whether an answer is right: exactly, or where the set has intents by its intent."""
        if not self.intents:
            return same(expected, answer)
        return self._intents(answer) == self._intents(expected)

    def _intents(self, text: str) -> list[str]:
        return [phrase for phrase in self.intents if phrase in text]


SETS = {own.name: own for own in (
    OwnSet("irrigation", "Turn the gardener's request into a JSON action."),
    OwnSet("tickets", "Name the topic of the customer's message: payment, repair, lock, lost, account or parking."),
    OwnSet("library", "You answer questions of visitors of the Alder Lane Library in one sentence.",
           ("9 to 18", "10 to 14", "three weeks", "twice", "20 cents", "is free", "12 books", "back of your card",
            "10 cents", "Wednesdays", "closed bottle", "front desk")),
    OwnSet("orders", "Extract quantity, item, day and name from the bakery's order as JSON."),
    OwnSet("log_lines", "Rewrite the sentence as a log line: [LEVEL] component: event."),
)}
