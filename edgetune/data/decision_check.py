"""What a person should know of rows that answer typed questions, a question at a time.

Options and wordings are compared over all rows of a file. Of a row the labels and a digest of its state are kept.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import decisions
from .decisions import CHOICE, NOUL, QUESTIONS, SCORE, TEACHER, TypedQuestion
from .question import question_digest
from .rows import Row

SAME = 0.8  # cosine of instructions from which two questions may be one in two wordings
NAMED = 8  # options that a sentence names
WordVectors = Callable[[Sequence[str]], NDArray[np.float32]]  # n texts -> [n, D], of length 1
Flaw = tuple[str, str, str, list[int]]  # kind, what, hint, lines


@dataclass
class _AskedDecision:
    """A question: offered: the options that some row offers, in order; labels: how many rows have each; lines: the
    first line of each state, by its labels; together: the keys of questions that the same rows ask.
    """

    question: TypedQuestion
    offered: dict[str, None] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    lines: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    together: set[str] = field(default_factory=set)
    first: int = 0

    @property
    def options(self) -> list[str]:
        """All options, whether offered or answered."""
        return [*dict.fromkeys([*self.offered, *self.labels])]

    def named(self, label: str) -> str:
        """What an option is called: a level by its text."""
        return self.question.texts[self.question.labels.index(label)] if self.question.type == SCORE else label


class DecisionCheck:
    """The typed questions of a file's rows, and their flaws."""

    def __init__(self) -> None:
        self._asked: dict[str, _AskedDecision] = {}
        self.teachers: Counter[str] = Counter()  # rows by the model that labelled them

    def __bool__(self) -> bool:
        return bool(self._asked)

    def add(self, line: int, given: Any, row: Row) -> bool:
        """Takes note of a row, and says whether it answers typed questions. given: as it was read; row: its
        conversation.
        """
        if not isinstance(row, Mapping) or not (labels := _labels(row)):
            return False
        offered = {}
        if isinstance(given, Mapping) and decisions.is_decision(given):
            offered = {question.key: question for question in decisions.read_questions(given[QUESTIONS]).values()}
            self.teachers.update([str(given[TEACHER])] if given.get(TEACHER) else [])
        state = question_digest(row)
        keys = dict.fromkeys([*offered, *labels])
        for key in keys:
            question = offered.get(key) or decisions.read_key(key)
            assert question
            asked = self._asked.setdefault(key, _AskedDecision(question, first=line))
            asked.offered |= dict.fromkeys(question.labels)
            asked.together |= {*keys}
            if key in labels:
                label = labels[key]
                asked.labels.update([label] if isinstance(label, str) else [*label])
                asked.lines[state].setdefault(decisions.likeliest(label), line)
        return True

    def flaws(self, vectors: WordVectors | None = None) -> Iterator[Flaw]:
        """Yields what may be wrong. vectors: of instructions; without them no two yes/no questions are compared."""
        for asked in self._asked.values():
            yield from _unanswered(asked)
            yield from _contradictions(asked)
        yield from self._wordings(vectors)

    def _wordings(self, vectors: WordVectors | None) -> Iterator[Flaw]:
        """Questions of one type with the same options that no row asks together, and whose instructions are alike."""
        known = [*self._asked.values()]
        near = None
        if vectors and len(known) > 1:
            found = vectors([each.question.instructions for each in known])
            near = found @ found.T >= SAME
        for i, j in combinations(range(len(known)), 2):
            a, b = known[i], known[j]
            if b.question.key in a.together or not _have_equal_options(a, b):
                continue
            if near is None and a.question.type == NOUL:
                continue
            if near is None or near[i, j]:
                how = "" if near is None else ", nearly in the same words"
                yield ("wordings", f"two questions have the same options{how}: {a.question.instructions!r:.200} and "
                       f"{b.question.instructions!r:.200}", "ask in one wording if they are one question: each wording "
                       "learns by itself", [a.first, b.first])


def _labels(row: Mapping[str, Any]) -> decisions.Labels:
    """The labels of a conversation by the keys of typed questions; {} for another."""
    messages = row.get("messages") or [{}]
    answer = messages[-1].get("content")
    if not isinstance(answer, str):
        return {}
    system = messages[0].get("content")
    if messages[0].get("role") == "system" and isinstance(system, str) and decisions.read_key(system):
        return {system: answer}
    return decisions.labels_in(answer) or {}


def _unanswered(asked: _AskedDecision) -> Iterator[Flaw]:
    name = f"{asked.question.instructions!r:.200}"
    missing = [asked.named(label) for label in asked.options if not asked.labels[label]]
    if not asked.labels:
        yield "unanswered", f"no row answers the question {name}", "add answers, or it is not learned", []
    elif len(asked.labels) == 1:
        [(label, count)] = asked.labels.items()
        answers = f"all {count} answers" if count > 1 else "the only answer"
        yield ("one-label", f"{answers} to the question {name} {'are' if count > 1 else 'is'} "
               f"{asked.named(label)!r:.80}", "add rows with other answers, or it is not learned", [])
    elif missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        options = f": {', '.join(missing[:NAMED])}{more}" if len(missing) > 1 else ""
        what = f"the option {missing[0]!r:.80}" if len(missing) == 1 else f"{len(missing)} options"
        never = "a question that offers it is refused" if asked.question.type == CHOICE else "it is never answered"
        yield "options", f"no row has {what} of the question {name}{options}", f"add rows, or {never}", []


def _contradictions(asked: _AskedDecision) -> Iterator[Flaw]:
    """States with several answers."""
    several = [labels for labels in asked.lines.values() if len(labels) > 1]
    if several:
        states = "1 state has" if len(several) == 1 else f"{len(several)} states have"
        yield ("contradictory", f"{states} several answers to the question {asked.question.instructions!r:.200}",
               "keep the right one, or give probabilities as gold",
               sorted(line for labels in several for line in labels.values()))


def _have_equal_options(a: _AskedDecision, b: _AskedDecision) -> bool:
    if a.question.type != b.question.type:
        return False
    return {*a.options} == {*b.options} if a.question.type == CHOICE else a.question.texts == b.question.texts
