"""The best of several answers to one prompt: that of the majority, the likeliest one, or the one that a grader prefers.

No further answer is made once none can change the choice. So the choice is that of all answers, for fewer tokens. An
answer that was cut is chosen only where all were.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..data.around import Instruction
from ..data.dataset import Dataset
from ..data.question import question_text
from ..data.rows import prompt_of
from ..llamacpp.sampling import SEED_LIMIT
from ..serving.draws import DrawnAnswer, Draws
from ..serving.llama import LlamaModel
from .graders.agreement import form_of
from .graders.base import Grader
from .graders.reward import RewardFunction
from .graders.sample import Sample
from .judge import same
from .served import GradedAnswer, Grades, Scores, exact_share, example_losses, mean_loss, parsed_share

MAJORITY = "majority"
LIKELIHOOD = "likelihood"
GRADER = "grader"
WAYS = (MAJORITY, GRADER, LIKELIHOOD)
BEST = 1.0  # reward of a grader above which there is none


@dataclass(frozen=True)
class ChosenAnswer:
    """The chosen answer. ended: answers that were finished; share: of these, those that say the same; score: its mean
    log p, or its reward; tokens: of all answers.
    """

    drawn: DrawnAnswer
    ended: int
    share: float
    score: float
    tokens: int = 0


class Chooser(Protocol):
    """A way to choose among answers that come one after another."""

    def take(self, drawn: DrawnAnswer) -> None:
        """Notes an answer."""

    def is_decided(self, left: int) -> bool:
        """Whether none of `left` further answers can change the choice."""

    def choice(self) -> ChosenAnswer:
        """The choice among the answers so far, of which there are some."""


class Majority:
    """The most frequent answer, as `form_of` compares them, and of several that say it the likeliest. pattern: finds
    the part that is compared: its first group, or all of it; "": the whole answer.
    """

    def __init__(self, pattern: str = "") -> None:
        self._pattern = re.compile(pattern) if pattern else None
        self._said: dict[Hashable, list[DrawnAnswer]] = defaultdict(list)
        self._all: list[DrawnAnswer] = []

    def take(self, drawn: DrawnAnswer) -> None:
        self._all.append(drawn)
        form = None if drawn.finish == "length" else form_of(part_of(drawn.text, self._pattern))
        if form is not None:
            self._said[form].append(drawn)

    def is_decided(self, left: int) -> bool:
        counts = sorted(map(len, self._said.values()))
        return bool(counts) and counts[-1] > left + (counts[-2] if len(counts) > 1 else 0)

    def choice(self) -> ChosenAnswer:
        most = max(self._said.values(), key=lambda said: (len(said), _likeliest(said).likelihood), default=self._all)
        best = _likeliest(most)
        return ChosenAnswer(best, len(self._all), len(most) / len(self._all) if self._said else 0.0, best.likelihood)


class LikeliestAnswer:
    """The answer whose tokens have the greatest mean log p. All answers are made."""

    def __init__(self) -> None:
        self._all: list[DrawnAnswer] = []

    def take(self, drawn: DrawnAnswer) -> None:
        self._all.append(drawn)

    def is_decided(self, left: int) -> bool:
        return left == 0

    def choice(self) -> ChosenAnswer:
        best = _likeliest(self._all)
        return ChosenAnswer(best, len(self._all), _share(best, self._all), best.likelihood)


class Preferred:
    """The answer with the highest reward, and of several the likeliest; the first one with the reward BEST ends it.
    item: the row that the answers are to, with all its columns.
    """

    def __init__(self, grader: Grader | RewardFunction, item: Mapping[str, Any]) -> None:
        self._grader = grader
        self._item = item
        self._all: list[tuple[float, DrawnAnswer]] = []

    def take(self, drawn: DrawnAnswer) -> None:
        [grade] = self._grader.grade([Sample(drawn.text, finish_reason=drawn.finish)], [self._item])
        self._all.append((grade.reward if grade.applicable else 0.0, drawn))

    def is_decided(self, left: int) -> bool:
        is_bounded = isinstance(self._grader, Grader) and self._grader.type != "multi"
        return left == 0 or (is_bounded and any(reward >= BEST for reward, _ in self._all))

    def choice(self) -> ChosenAnswer:
        reward, best = max(self._all, key=lambda each: (each[0], each[1].finish == "stop", each[1].likelihood))
        return ChosenAnswer(best, len(self._all), _share(best, [drawn for _, drawn in self._all]), reward)


def chooser_of(way: str, pattern: str = "", grader: Grader | RewardFunction | None = None,
               item: Mapping[str, Any] | None = None) -> Chooser:
    """The chooser of a way. pattern: of majority; grader, item: of grader."""
    if way == MAJORITY:
        return Majority(pattern)
    if way == LIKELIHOOD:
        return LikeliestAnswer()
    assert grader is not None
    return Preferred(grader, item or {})


def chosen(draws: Draws, count: int, chooser: Chooser) -> ChosenAnswer:
    """Takes answers, `count` at most, until the choice is decided, and returns it."""
    for ended, drawn in enumerate(draws, start=1):
        chooser.take(drawn)
        if chooser.is_decided(count - ended):
            break
    draws.close()
    found = chooser.choice()
    return replace(found, tokens=draws.tokens)


@dataclass(frozen=True)
class Choosing:
    """One of several answers. samples: answers to a prompt at most. way, pattern, grader: as of `chooser_of`."""

    samples: int
    way: str = MAJORITY
    pattern: str = ""
    grader: Grader | RewardFunction | None = None

    def answer(self, served: LlamaModel, prompt: str, item: Mapping[str, Any], **options: Any) -> ChosenAnswer:
        """The chosen answer to a prompt. item: its row, for a grader. options: of Draws, whose errors it raises."""
        return chosen(Draws(served, prompt, self.samples, **options), self.samples, self.chooser(item))

    def chooser(self, item: Mapping[str, Any]) -> Chooser:
        """The chooser of the answers to a row."""
        return chooser_of(self.way, self.pattern, self.grader, item)


def grade_chosen(served: LlamaModel, dataset: Dataset, choosing: Choosing, *, system: Instruction = None,
                 limit: int | None = None, **options: Any) -> Grades:
    """The held-out loss, and the chosen answers to the first `limit` rows (None: all). With a pattern the part counts
    that it finds. options: of Draws. Raises DataError for a row that lacks what the grader names.
    """
    rows = dataset.asking[:limit]
    items = [row if isinstance(row, Mapping) else {} for row in rows]
    for item in items if choosing.grader else ():
        assert choosing.grader
        choosing.grader.check_item(item)
    losses = example_losses(served, dataset)
    loss, count = mean_loss(losses)
    pattern = re.compile(choosing.pattern) if choosing.pattern else None
    found = []
    tokens = 0
    first = options.pop("seed", 0)
    for i, (row, item) in enumerate(zip(rows, items, strict=True)):
        prompt, expected = prompt_of(row, served.tokenizer, system)
        budget = options.get("max_tokens") or 2 * len(served.tokenizer.encode(expected)) + 16
        seed = (first + i * choosing.samples) % SEED_LIMIT  # the same for all rows would draw alike
        choice = choosing.answer(served, prompt, item, **options | {"max_tokens": budget, "seed": seed})
        text = choice.drawn.text
        right = same(part_of(expected, pattern) or expected, part_of(text, pattern))
        found.append(GradedAnswer(prompt, expected, text, right, choice.drawn.finish == "stop", question_text(row)))
        tokens += choice.tokens
    scores = Scores(served.engine, len(dataset.examples), count, loss, exact_share(found), len(found),
                    parsed_share(found), sampled_tokens=tokens / len(found) if found else None)
    return Grades(scores, losses, found)


def chosen_of(made: Sequence[DrawnAnswer], chooser: Chooser) -> ChosenAnswer:
    """The choice among answers that are made already."""
    for drawn in made:
        chooser.take(drawn)
    return replace(chooser.choice(), tokens=sum(drawn.tokens for drawn in made))


def part_of(text: str, pattern: re.Pattern[str] | None) -> str:
    """The part of a text that a pattern finds last: its first group, or all of it. Without a pattern the whole text,
    and without a match nothing.
    """
    if pattern is None:
        return text
    found = [*pattern.finditer(text)]
    if not found:
        return ""
    return (found[-1][1] if pattern.groups else found[-1][0]) or ""


def _likeliest(drawn: Iterable[DrawnAnswer]) -> DrawnAnswer:
    return max(drawn, key=lambda each: (each.finish == "stop", each.likelihood))


def _share(best: DrawnAnswer, all_drawn: list[DrawnAnswer]) -> float:
    form = form_of(best.text)
    return sum(form_of(each.text) == form for each in all_drawn) / len(all_drawn)
