"""Rows drawn from one source: a wording for each, some with examples before them, some inverted. A row is a
conversation; the answers of its examples have weight 0, because they are not learned again.

A source gives rows in proportion to its size, of which a cap counts at most (Raffel et al. 2020, arXiv 1910.10683), or
to a weight that a person chose.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...data.rows import as_messages
from .source_rows import SourceItem
from .spec import COMPLETION, OPTIONS, PROMPT, FewShot, MixtureSpec, RowSource, Wording
from .spec_file import filled


def proportional(total: int, sizes: Mapping[str, int], cap: int = 0, weights: Mapping[str, float] | None = None,
                 ) -> dict[str, int]:
    """{source: rows} whose sum is `total`, or all rows where there are fewer; none gives more than it has.

    sizes: rows of each source. cap: rows of a source that count at most for its share; 0: all. weights: in place of
    the sizes, for the sources in it. What a small source cannot give is divided among the others.
    """
    given = dict.fromkeys(sizes, 0)
    weight = {name: float((weights or {}).get(name, min(size, cap) if cap else size)) for name, size in sizes.items()}
    left = min(total, sum(size for name, size in sizes.items() if weight[name] > 0))
    while left > 0:
        free = {name: weight[name] for name, size in sizes.items() if weight[name] > 0 and given[name] < size}
        for name, part in _divided(left, free).items():
            given[name] = min(sizes[name], given[name] + part)
        left = min(total, sum(size for name, size in sizes.items() if weight[name] > 0)) - sum(given.values())
    return given


def _divided(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """`total` in whole numbers by weights, the largest remainders rounded up (Hamilton's method)."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    parts = {name: int(value) for name, value in exact.items()}
    for name in sorted(weights, key=lambda name: (parts[name] - exact[name], name))[:total - sum(parts.values())]:
        parts[name] += 1
    return parts


@dataclass
class DrawnRows:
    """Rows of a source. few_shot, inverted: how many of them are. wordings: rows of each template, then of each
    inverted one. as_they_are: conversations that no template can change. no_option: rows that were left out because
    their answer is none of the source's options.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    few_shot: int = 0
    inverted: int = 0
    wordings: list[int] = field(default_factory=list)
    as_they_are: int = 0
    no_option: int = 0


class Drawer:
    """Draws rows of a source. The seed and the source's name decide, so that other sources change nothing here."""

    def __init__(self, source: RowSource, items: Sequence[SourceItem], mixture: MixtureSpec, seed: int) -> None:
        self.source = source
        self.most_options = mixture.most_options
        self.few_shot = FewShot() if source.as_it_is or len(items) < 2 else mixture.few_shot
        self.inverted_share = mixture.inverted if source.inverted else 0.0
        self.rng = random.Random(f"{seed}:{source.name}")
        self.options = _options(source, items)
        self.drawn = DrawnRows(wordings=[0] * (len(source.templates) + len(source.inverted)))
        self.items = [item for item in items if isinstance(source.options, bool) or item.fields is None
                      or item.fields[COMPLETION] in self.options]
        self.drawn.no_option = len(items) - len(self.items)
        self.demonstrations = [item.fields for item in self.items if item.fields is not None]
        self.places: dict[str, list[int]] = defaultdict(list)  # of the demonstrations that ask a prompt
        for place, fields in enumerate(self.demonstrations):
            self.places[fields[PROMPT]].append(place)

    def draw(self, count: int) -> DrawnRows:
        """`count` rows: every item once before one is taken again, then in its next wording."""
        order = self.rng.sample(self.items, len(self.items))
        for number in range(count):
            again, rank = divmod(number, len(order))
            self.drawn.rows.append(self._row(order[rank], rank + again))
        return self.drawn

    def _row(self, item: SourceItem, turn: int) -> dict[str, Any]:
        """A row of an item. turn: the number of its template, which begins again after the last."""
        if item.fields is None or self.source.as_it_is:
            self.drawn.as_they_are += 1
            return item.row
        is_inverted = self.rng.random() < self.inverted_share
        wording = self._wording(is_inverted, turn)
        examples = self._examples(item.fields)
        self.drawn.inverted += is_inverted
        self.drawn.few_shot += bool(examples)
        turns = [self._turn(wording, fields) for fields in examples]
        shown = [message for question, answer in turns for message in (question, {**answer, "weight": 0})]
        return {"messages": [*shown, *self._turn(wording, item.fields)]}

    def _wording(self, is_inverted: bool, turn: int) -> Wording:
        wordings = self.source.inverted if is_inverted else self.source.templates
        number = turn % len(wordings)
        self.drawn.wordings[number + len(self.source.templates) * is_inverted] += 1
        return wordings[number]

    def _examples(self, fields: Mapping[str, str]) -> list[Mapping[str, str]]:
        """Other rows of the source, for some rows."""
        if self.rng.random() >= self.few_shot.share:
            return []
        own = self.places[fields[PROMPT]]
        others = len(self.demonstrations) - len(own)
        most = min(self.few_shot.examples, others)
        drawn = self.rng.sample(range(others), self.rng.randint(1, most)) if most else []
        return [self.demonstrations[_past(number, own)] for number in drawn]

    def _turn(self, wording: Wording, fields: Mapping[str, str]) -> list[dict[str, Any]]:
        values = dict(fields)
        if self.options:
            values[OPTIONS] = ", ".join(self._listed(fields[COMPLETION]))
        return as_messages(*(filled(part.worded(iter([self.rng.randrange(len(each)) for each in part.choices])), values)
                             for part in (wording.prompt, wording.completion)))

    def _listed(self, right: str) -> list[str]:
        """The options in some order: all, or the right one among as many as may be listed."""
        others = [option for option in self.options if option != right]
        listed = [right, *self.rng.sample(others, min(len(others), self.most_options - 1))]
        self.rng.shuffle(listed)
        return listed


def _past(number: int, places: Sequence[int]) -> int:
    """The place that has this number once some places, in ascending order, are left out."""
    for place in places:
        number += place <= number
    return number


def _options(source: RowSource, items: Sequence[SourceItem]) -> list[str]:
    if isinstance(source.options, tuple):
        return list(source.options)
    return sorted({item.fields[COMPLETION] for item in items if item.fields}) if source.options else []
