"""Sets of examples that are the same for all questions, drawn so that few kinds of answers are missed."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ..data.answer_schema import derive, is_closed
from ..data.rows import Row
from .instructions import answer_of


def spread(rows: Sequence[Row], count: int, seed: str) -> list[Mapping[str, Any]]:
    """Draws at most `count` rows: each kind of answer has one before another has two. They are in random order. The
    same seed and rows give the same set.
    """
    chance = random.Random(seed)
    by_kind: dict[str, list[Row]] = defaultdict(list)
    for row, kind in zip(rows, kinds_of(rows), strict=True):
        by_kind[kind].append(row)
    kinds = list(by_kind.values())
    for each in kinds:
        chance.shuffle(each)
    chance.shuffle(kinds)
    rounds = [each[i] for i in range(max(map(len, kinds), default=0)) for each in kinds if i < len(each)]
    found = rounds[:count]
    chance.shuffle(found)
    return cast("list[Mapping[str, Any]]", found)


def kinds_of(rows: Sequence[Row]) -> list[str]:
    """The kind of each row's answer: itself where few occur; of JSON its values of the fields that have few; else all
    are alike.
    """
    answers = [answer_of(row) for row in rows]
    if is_closed(answers):
        return answers
    properties = (derive(rows) or {}).get("properties", {})
    fields = [name for name, inner in properties.items() if "enum" in inner]
    if not fields:
        return [""] * len(rows)
    return [json.dumps([json.loads(answer).get(name) for name in fields]) for answer in answers]
