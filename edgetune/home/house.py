"""A house on disk: its entities, the rows of its training, and the adapters that learned them.

    house.json       language, models and what was measured
    entities.yaml    the entities, as they were when it was trained
    rows.jsonl       a sentence, its calls or why there are none, and its kind, a line each
    own.jsonl        a person's own rows, where there are some
    encoder/         an adapter of the encoder
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..disk import json_text, read_object
from ..errors import NotFoundError
from ..persisted import from_json
from ..version import __version__
from .entities import Home, read_home

if TYPE_CHECKING:
    from .rows import Row

FACTS, ENTITIES, ROWS, OWN_ROWS, ENCODER = "house.json", "entities.yaml", "rows.jsonl", "own.jsonl", "encoder"


@dataclass(frozen=True)
class Facts:
    """language, count, seed: by which its rows were drawn. encoder: what learned them. rows: how many. right, asked: of
    the sentences that were held out.
    """

    language: str
    count: int
    seed: int
    encoder: str
    rows: int
    right: int = 0
    asked: int = 0
    edgetune: str = __version__


@dataclass(frozen=True)
class House:
    folder: Path
    facts: Facts
    home: Home

    @property
    def adapter(self) -> Path:
        return self.folder / ENCODER

    @property
    def own(self) -> str:
        """The file of a person's own rows, "" without one."""
        path = self.folder / OWN_ROWS
        return str(path) if path.exists() else ""

    @classmethod
    def open(cls, folder: str | Path) -> House:
        """Raises NotFoundError for a folder that is no house, FormatError for a damaged one, and the errors of
        read_home."""
        folder = Path(folder)
        found = read_object(folder / FACTS, "train the house again with edgetune home train")
        if found is None:
            raise NotFoundError(f"{folder} is no house: it has no {FACTS}", "make one with edgetune home train")
        return cls(folder, from_json(Facts, found, str(folder / FACTS)), read_home(folder / ENTITIES))


def write_facts(folder: Path, facts: Facts) -> None:
    (folder / FACTS).write_text(json_text(asdict(facts), indent=1) + "\n", encoding="utf-8")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A line for each row: {"sentence", "calls", "why", "kind"}."""
    lines = [json.dumps(plain(row), ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def plain(row: Row) -> dict[str, Any]:
    return {"sentence": row.sentence, "calls": [call.to_json() for call in row.calls], "why": row.why, "kind": row.kind}
