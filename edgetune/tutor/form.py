"""What all labelled answers have in common, and so what a right answer to another question has too.

A few labelled rows say more than their answers: which fields there are, which values a field has if it has few, which
fields come with which of these, and whether values are taken from what is asked. An answer that breaks what rows keep
is wrong more often than one that keeps it, however many others say the same.

What holds for all rows may hold by chance where they are few. So each of these is a check only if most labelled
answers keep what the others say, part of them left out at a time (cross-validation, Stone 1974).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..data.answer_schema import LEAST, is_closed, is_copied
from ..data.words import normal, stands_in
from ..evaluation.graders.agreement import parts_of
from .questions import Question

FOLDS = 10
MOST = 0.5  # of labelled answers keep what the others say, for a check

Place = Hashable  # where a value stands in an answer


@dataclass(frozen=True)
class Form:
    """closed: the values of each field that has few; copied: the fields whose values are taken from the question, where
    there may be others. places: where values stand; beside: where they stand in answers that have a certain value of a
    closed field. checks: the names of those that count.
    """

    closed: Mapping[Place, frozenset[Hashable]]
    copied: frozenset[Place]
    places: frozenset[Place]
    beside: Mapping[Hashable, frozenset[Place]]
    checks: frozenset[str] = frozenset()

    def keeps(self, question: Question, text: str) -> bool:
        """Whether an answer to a question passes all checks."""
        parts = parts_of(text)
        return bool(parts) and all(CHECKS[name](self, question, parts) for name in self.checks)

    def has_fields(self, _: Question, parts: Iterable[Any]) -> bool:
        places = {place for place, _ in parts}
        chosen = self.closed.keys() - self.copied
        known = [self.beside.get(part, frozenset()) for part in parts if part in self.beside or part[0] in chosen]
        return places <= self.places and all(places <= beside for beside in known)

    def has_values(self, question: Question, parts: Iterable[Any]) -> bool:
        source = normal(question.text)
        return all(value in self.closed[place] or (place in self.copied and _stands_in(source, value))
                   for place, value in parts if place in self.closed)

    def is_grounded(self, question: Question, parts: Iterable[Any]) -> bool:
        source = normal(question.text)
        return all(_stands_in(source, value) for place, value in parts if place not in self.closed)


CHECKS: dict[str, Callable[[Form, Question, Iterable[Any]], bool]] = {
    "fields": Form.has_fields, "values": Form.has_values, "grounded": Form.is_grounded}


def kept(form: Form | None, question: Question, texts: Sequence[str]) -> list[int]:
    """The places of those answers to a question that keep a form; all without one."""
    return [place for place, text in enumerate(texts) if form is None or form.keeps(question, text)]


def common_form(labelled: Sequence[Question]) -> Form | None:
    """None where labelled answers are too few to say anything, or keep nothing that others do."""
    if len(labelled) < LEAST:
        return None
    counts = dict.fromkeys(CHECKS, 0)
    for fold in range(FOLDS):
        form = _form(labelled[i] for i in range(len(labelled)) if i % FOLDS != fold)
        for question in labelled[fold::FOLDS]:
            parts = parts_of(question.reference)
            for name, check in CHECKS.items():
                counts[name] += check(form, question, parts)
    checks = frozenset(name for name, count in counts.items() if count > MOST * len(labelled))
    return replace(_form(labelled), checks=checks) if checks else None


def _form(labelled: Iterable[Question]) -> Form:
    answers: list[tuple[str, frozenset[Any]]] = [
        (normal(question.text), parts_of(question.reference)) for question in labelled]
    values: dict[Place, list[tuple[str, Hashable]]] = {}
    for source, parts in answers:
        for place, value in parts:
            values.setdefault(place, []).append((source, value))
    closed = {place: frozenset(value for _, value in found) for place, found in values.items()
              if is_closed([value for _, value in found])}
    copied = frozenset(place for place in closed if is_copied(values[place], _stands_in))
    beside: dict[Hashable, frozenset[Place]] = {}
    for _, parts in answers:
        places = frozenset(place for place, _ in parts)
        for part in parts:
            if part[0] in closed:
                beside[part] = beside.get(part, frozenset()) | places
    return Form(closed, copied, frozenset(values), beside)


def _stands_in(source: str, value: Any) -> bool:
    """Whether a value of `parts_of` stands in a normal text; what is neither text nor number need not."""
    said = value[1] if isinstance(value, tuple) else value
    return isinstance(said, bool) or not isinstance(said, str | int | float) or stands_in(source, said)
