"""The results of the steps of a round, each written to a file and read back.

Ledger, progress and `inspect` show the `facts` of a result: counts, seeds and decisions, no text that anybody wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from ....persisted import from_json
from .answers import LABELLED, VERIFIED, Choice, ModelAnswer

T = TypeVar("T")


@dataclass(frozen=True)
class RoundResult:
    """The result of a step. step: its name, and that of its file."""

    step: ClassVar[str]

    @property
    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> dict[str, Any]:
        return {"facts": self.facts, **asdict(self)}


def result_of(kind: type[T], found: Mapping[str, Any], source: str) -> T:
    """A result read back, like `from_json`, and also the dataclasses in lists of its fields. source: names the file in
    the FormatError that damaged content raises.
    """
    values = {name: value for name, value in found.items() if name != "facts"}
    for spec in fields(kind):  # type: ignore[arg-type]
        inner = spec.metadata.get("of")
        if inner and isinstance(values.get(spec.name), list):
            values[spec.name] = [result_of(inner, one, source) for one in values[spec.name]]
    return from_json(kind, values, source)


def list_of(kind: type) -> Any:
    """A field that holds a list of dataclasses."""
    return field(metadata={"of": kind})


@dataclass(frozen=True)
class PromptAnswers:
    """The answers to one prompt. asked: its text, for people."""

    key: str
    asked: str
    answers: Sequence[ModelAnswer] = list_of(ModelAnswer)


@dataclass(frozen=True)
class DrawnAnswers(RoundResult):
    """The drawn answers. unseen: prompts that no earlier round asked. sure_from: the probability from which the judge
    is sure of its answers; None where there is no judge.
    """

    step: ClassVar[str] = "draw"
    seed: int
    unseen: int
    prompts: Sequence[PromptAnswers] = list_of(PromptAnswers)
    sure_from: float | None = None

    @property
    def facts(self) -> dict[str, Any]:
        answers = [one for prompt in self.prompts for one in prompt.answers]
        return {"seed": self.seed, "prompts": len(self.prompts), "unseen": self.unseen, "answers": len(answers),
                "drawn": sum(one.tokens for one in answers), "ended": sum(one.ended for one in answers),
                **({} if self.sure_from is None else {"sure_from": self.sure_from})}


@dataclass(frozen=True)
class Chosen(RoundResult):
    """The choices for all asked prompts. stop: why the round learns no answers; "" if it does."""

    step: ClassVar[str] = "choose"
    stop: str
    choices: Sequence[Choice] = list_of(Choice)

    @property
    def facts(self) -> dict[str, Any]:
        rate = sum(one.rate for one in self.choices) / len(self.choices)
        return {"rate": rate, "chosen": sum(bool(one.label) for one in self.choices), "stop": self.stop}


@dataclass(frozen=True)
class TrainingRow:
    """One answer to learn. key: of its question. source: who or what says that it is right, as in answers.py."""

    key: str
    text: str
    source: str

    @property
    def is_verified(self) -> bool:
        """Whether a person or a grader that asks no model says that the answer is right."""
        return self.source in (LABELLED, VERIFIED)


@dataclass(frozen=True)
class Trained(RoundResult):
    """A training. tokens: trained on, repetitions included."""

    step: ClassVar[str] = "train"
    seed: int
    steps: int
    tokens: int
    rows: Sequence[TrainingRow] = list_of(TrainingRow)

    @property
    def facts(self) -> dict[str, Any]:
        return {"seed": self.seed, "rows": len(self.rows), "verified": sum(one.is_verified for one in self.rows),
                "steps": self.steps, "trained": self.tokens}


@dataclass(frozen=True)
class Labels(Trained):
    """The training of the labelled rows alone."""

    step: ClassVar[str] = "labels"


@dataclass(frozen=True)
class Published(RoundResult):
    """adapter: its folder, from that of the rounds. objection: to the one that learned held-out rows too, or ""."""

    step: ClassVar[str] = "publish"
    adapter: str
    objection: str = ""
