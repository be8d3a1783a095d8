"""OpenAI's score_model, scored by the model that is trained, without generating anything.

A small model writes poor verdicts, but its probabilities are fair. So it is prompted for one digit, and the reward is
the expected digit: sum_d p(d) d, p relative to the digits, mapped to the range (G-Eval, arXiv 2303.16634, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...data.question import content_text
from ...errors import UsageError
from .base import NOT_WRITTEN, Grade, Grader, Means, ScoreModel, register
from .sample import Sample, Ungraded
from .template import GraderTemplate, parse_template

SELF = "self"
ROLES = ("user", "assistant", "system", "developer")
MOST = 9  # the highest digit
ASKS = "Answer with one digit from {low} (the worst) to {high} (the best), and nothing else."


@register
@dataclass(frozen=True, kw_only=True)
class ScoreModelGrader(Grader):
    """A reward within `range`. model: "self", or the name of the model that scores here. input: messages, to
    which the prompt for a digit is added. pass_threshold: the lowest reward with which an answer passes.

    Where the conversation does not fit the model's context, that is a truncated_observation_error.
    """

    type: ClassVar[str] = "score_model"
    model: str
    input: tuple[Mapping[str, Any], ...]
    range: tuple[float, float] = (0, 1)
    pass_threshold: float | None = None
    sampling_params: Mapping[str, Any] | None = None
    judge: ScoreModel | None = field(default=None, metadata=NOT_WRITTEN, compare=False, repr=False)

    def check(self) -> None:
        names = (SELF, self.judge.name) if self.judge else (SELF,)
        if self.judge and self.model not in names:
            raise self.wrong("model", f"is {self.model!r:.80}; here the model grades itself", f'write "{SELF}"')
        if self.sampling_params:
            raise self.wrong("sampling_params", "is given; the score is an expected value, nothing is sampled",
                             "leave it out")
        if self.range[0] >= self.range[1]:
            raise self.wrong("range", f"is {list(self.range)}", "give the worst, then the best")
        if not self.input:
            raise self.wrong("input", "is empty", 'write [{"role": "user", "content": "..."}]')
        for i, message in enumerate(self.input):
            self._check_message(f"input[{i}]", message)
        super().check()

    def _check_message(self, name: str, message: Mapping[str, Any]) -> None:
        hint = 'write {"role": "user", "content": "..."}'
        if message.get("role") not in ROLES:
            raise self.wrong(name, f"has the role {message.get('role')!r:.40}", f"choose from {', '.join(ROLES)}")
        if strange := [key for key in message if key not in ("role", "content", "type")]:
            raise self.wrong(name, f"has the key {strange[0]!r:.40}", hint)
        if not content_text(_as_list(message.get("content"))):
            raise self.wrong(name, "has no text", hint)

    def templates(self) -> list[GraderTemplate]:
        return [parse_template(content_text(_as_list(message.get("content"))), f"input[{i}] of the grader {self.name}")
                for i, message in enumerate(self.input)]

    @property
    def needs_model(self) -> bool:
        return True

    @property
    def labels(self) -> list[int]:
        """The digits to choose from: those of the range if its ends are digits, else 0 to 9."""
        low, high = self.range
        is_whole = float(low).is_integer() and float(high).is_integer()
        is_digits = is_whole and low >= 0 and high <= MOST and high - low > 1
        return list(range(int(low), int(high) + 1)) if is_digits else list(range(MOST + 1))

    def grade(self, samples: Sequence[Sample], items: Sequence[Mapping[str, Any]]) -> list[Grade]:
        if self.judge is None:
            raise UsageError(f"the grader {self.name} needs a model that grades", "name one")
        grades: list[Grade] = []
        conversations: list[list[dict[str, Any]] | None] = []
        for sample, item in zip(samples, items, strict=True):
            try:
                conversations.append(self.conversation(sample, item))
                grades.append(Grade(0.0, errors={"truncated_observation_error": True}))  # unless the judge says more
            except Ungraded as ungraded:
                conversations.append(None)
                grades.append(Grade(0.0, errors=ungraded.errors))
        asked = [i for i, conversation in enumerate(conversations) if conversation is not None]
        texts = [str(label) for label in self.labels]
        said = self.judge.label_probabilities([conversations[i] or [] for i in asked], texts)
        for i, probabilities in zip(asked, said, strict=True):
            if probabilities is not None:
                grades[i] = Grade(self.expected(probabilities))
        return grades

    def conversation(self, sample: Sample, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The messages to the judge. Raises Ungraded."""
        found = [{"role": "system" if message["role"] == "developer" else message["role"],
                  "content": template.render(sample, item)}
                 for message, template in zip(self.input, self.templates(), strict=True)]
        asks = ASKS.format(low=self.labels[0], high=self.labels[-1])
        if found[-1]["role"] == "user":
            found[-1]["content"] += f"\n\n{asks}"
        else:
            found.append({"role": "user", "content": asks})
        return found

    def expected(self, probabilities: Sequence[float]) -> float:
        """The expected score, within the range."""
        labels = self.labels
        mean = sum(p * label for p, label in zip(probabilities, labels, strict=True))
        low, high = self.range
        score = low + (high - low) * (mean - labels[0]) / (labels[-1] - labels[0])
        return min(max(score, low), high)

    @classmethod
    def beside(cls, means: Means) -> dict[str, Any]:
        return {"judge": means.model}


def _as_list(content: Any) -> Any:
    """OpenAI allows one part of a message without a list around it."""
    return [content] if isinstance(content, Mapping) else content
