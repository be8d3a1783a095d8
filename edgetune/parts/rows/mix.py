"""Several sources of rows as one file to train on (FLAN, Wei et al. 2021, arXiv 2109.01652; Longpre et al. 2023, arXiv
2301.13688). A mixture is a pure function of the specification, the files that it names, and the seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.dataset import digest_of
from ...errors import DataError
from .draw import Drawer, proportional
from .source_rows import HeldPassages, Left, NearDuplicates, held_out_questions, read_items
from .spec import REPLAY, MixtureSpec, RowSource, read_mixture


@dataclass(frozen=True)
class SourceReport:
    """What became of a source. read: rows of its files. unusable, repeated, held_out, no_option: rows left out. usable:
    the others. taken: rows of the mixture; few_shot, inverted, as_they_are: of these. wordings: rows of each template.
    """

    read: int
    unusable: int
    repeated: int
    held_out: int
    no_option: int
    usable: int
    taken: int
    few_shot: int
    inverted: int
    as_they_are: int
    wordings: list[int]


@dataclass(frozen=True)
class MixReport:
    """The report of a mixture. digest: the SHA-256 of its rows in their order. held_out: questions that no row may
    overlap.
    """

    rows: int
    seed: int
    digest: str
    held_out: int
    sources: dict[str, SourceReport]


def mix(spec: Path, seed: int = 0) -> tuple[list[dict[str, Any]], MixReport]:
    """The rows of a mixture, shuffled, and its report. Raises DataError and UsageError, as `read_mixture`, and for a
    source without a row that can be used.
    """
    mixture = read_mixture(spec)
    questions = held_out_questions(mixture.held_out)
    passages = HeldPassages(questions)
    near = NearDuplicates(mixture.near)
    sources = [*mixture.sources, *([RowSource(REPLAY, mixture.replay, (), as_it_is=True)] if mixture.replay else [])]
    left = {source.name: read_items(source.rows, near, passages) for source in sources}
    drawers = {source.name: Drawer(source, left[source.name].items, mixture, seed) for source in sources}
    items = {name: len(drawer.items) for name, drawer in drawers.items()}
    for name, number in items.items():
        if not number:
            raise DataError(f"no answer of the source {name} is one of its options", "name the answers as the rows do")
    counts = counts_of(mixture, items)
    drawn = {name: drawer.draw(counts[name]) for name, drawer in drawers.items()}
    rows = [row for each in drawn.values() for row in each.rows]
    random.Random(seed).shuffle(rows)
    reports = {name: _report(left[name], drawers[name]) for name in drawn}
    return rows, MixReport(len(rows), seed, digest_of(rows), len(questions), reports)


def counts_of(mixture: MixtureSpec, items: Mapping[str, int]) -> dict[str, int]:
    """{source: rows to draw}, with the rows that are replayed. items: rows that each source has, before they are
    repeated in other wordings; these alone count for its share.
    """
    counted = {source.name: min(items[source.name], mixture.cap or items[source.name]) for source in mixture.sources}
    weights = {source.name: counted[source.name] if source.weight is None else source.weight
               for source in mixture.sources}
    sizes = {source.name: items[source.name] * source.repeat for source in mixture.sources}
    share = mixture.replay_share if mixture.replay else 0.0
    if mixture.rows:
        total = mixture.rows - round(share * mixture.rows)
    else:
        total = sum(counted[source.name] * source.repeat for source in mixture.sources)
    counts = proportional(total, sizes, 0, weights)
    if mixture.replay:
        counts[REPLAY] = min(items[REPLAY], round(sum(counts.values()) * share / (1 - share)))
    return counts


def _report(left: Left, drawer: Drawer) -> SourceReport:
    drawn = drawer.drawn
    return SourceReport(left.read, left.unusable, left.repeated, left.held_out, drawn.no_option, len(drawer.items),
                        len(drawn.rows), drawn.few_shot, drawn.inverted, drawn.as_they_are, drawn.wordings)
