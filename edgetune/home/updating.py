"""A house whose entities changed, or whose people corrected it, is trained again. It replaces the old one unless it is
worse on what stayed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..disk import json_lines
from ..errors import UsageError
from ..evaluation.acceptance import Paired
from ..training.callbacks import RunCallbacks
from .by_own import plain
from .entities import Home, read_home
from .house import ENTITIES, OWN_ROWS, House
from .language import Language, language_of
from .learning import is_right, make_house
from .opening import understanding_of
from .own import read_own
from .recipe import Recipe
from .rows import Row, Rows
from .sentences import read_sentences
from .tools import bare

ALPHA = 0.05  # of the test whether the new house is worse
ASKED = 600  # sentences that are drawn, of which those count that name an entity
NAMING = {"name", "todo_list"}  # arguments that name an entity
OwnRow = dict[str, Any]
OTHER_SEED = 1_000_003  # the sentences that decide were drawn by another seed than those that were learned


@dataclass(frozen=True)
class Change:
    """Names of entities. stayed: with the same name and area."""

    added: tuple[str, ...]
    renamed: tuple[str, ...]
    removed: tuple[str, ...]
    stayed: tuple[str, ...]

    @classmethod
    def of(cls, old: Home, new: Home) -> Change:
        before = {one.id: one for one in old.entities}
        after = {one.id: one for one in new.entities}
        both = [one for identity, one in after.items() if identity in before]
        stayed = [one for one in both if before[one.id] == one]
        return cls(tuple(one.name for identity, one in after.items() if identity not in before),
                   tuple(one.name for one in both if before[one.id] != one),
                   tuple(one.name for identity, one in before.items() if identity not in after),
                   tuple(one.name for one in stayed))

    def __bool__(self) -> bool:
        return bool(self.added or self.renamed or self.removed)


@dataclass(frozen=True)
class Updated:
    """stayed: the new house compared with the old one, on sentences about entities that stayed. right, asked: on those
    about the others. own_right, own: of a person's own sentences. replaced: whether the new house took the old one's
    place.
    """

    change: Change
    stayed: Paired
    right: int
    asked: int
    own_right: int
    own: int
    replaced: bool


def update_house(folder: str | Path, entities: str | Path | None = None, own: str | Path = "", *, memory: str = "",
                 threads: int = 0, callbacks: RunCallbacks | None = None,
                 on_step: Callable[[str], None] = lambda _: None) -> Updated:
    """Trains a house on changed entities, on a person's further rows, or on both. The old one is kept as FOLDER.before.
    entities: None for those of the house. own: file of the rows; they come before the house's own ones with the same
    sentences. Raises UsageError where nothing has changed, and the errors of House.open, read_home and make_house.
    """
    folder = Path(folder)
    old = House.open(folder)
    entities = old.folder / ENTITIES if entities is None else Path(entities)
    home = read_home(entities)
    change = Change.of(old.home, home)
    if not change and not own:
        raise UsageError(f"{entities} has the same entities as {folder}", "train a new house for other sentences, or "
                         "name a file of your own by --own")
    if own:
        read_own(own, home)  # names the line that is wrong in this file, and not in the joined one
    facts = old.facts
    made = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    with TemporaryDirectory() as temporary:
        rows = joined_own(read_rows_of(own), renamed_own(old, home))
        recipe = Recipe(facts.language, facts.count, facts.seed, write_own(Path(temporary) / OWN_ROWS, rows),
                        **facts.models)
        new = make_house(entities, made, recipe, memory=memory, threads=threads, callbacks=callbacks, on_step=on_step)
    on_step("asking the old house and the new one")
    updated = compared(old, new, change, language_of(facts.language), threads)
    if updated.replaced:
        before = folder.with_name(f"{folder.name}.before")
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
        made.rename(folder)
    return updated


def read_rows_of(path: str | Path) -> list[OwnRow]:
    """The rows of a file of a person's own sentences; none for "". Raises DataError."""
    return [row for _, row in read_sentences(path)] if path else []


def joined_own(first: Sequence[OwnRow], others: Sequence[OwnRow]) -> list[OwnRow]:
    """All rows; of equal sentences the first counts."""
    return list({plain(row["sentence"]): row for row in [*others, *first]}.values())


def write_own(path: Path, rows: Sequence[OwnRow]) -> str:
    """The file, which is written; "" where there are no rows."""
    path.write_text(json_lines(rows), encoding="utf-8")
    return str(path) if rows else ""


def renamed_own(old: House, new: Home) -> list[OwnRow]:
    """A person's own rows of a house with the new names of entities, without rows about those that are gone."""
    names = {one.id: one.name for one in new.entities}
    renamed = {one.name: names.get(one.id, "") for one in old.home.entities}
    kept = []
    for row in read_rows_of(old.own):
        calls = [{**call, "arguments": {**call.get("arguments", {})}} for call in row["calls"]]
        for call in calls:
            for key in NAMING & call["arguments"].keys():
                call["arguments"][key] = renamed.get(bare(call["arguments"][key]), call["arguments"][key])
        if all("" not in (call["arguments"].get(key) for key in NAMING) for call in calls):
            kept.append({**row, "calls": calls})
    return kept


def compared(old: House, new: House, change: Change, language: Language, threads: int) -> Updated:
    """What both say to sentences that name an entity."""
    rows = [row for row in Rows(new.home, language, new.facts.seed + OTHER_SEED).draw(ASKED) if is_naming(row)]
    stayed = [row for row in rows if row.wishes[0].target.name in change.stayed]
    changed = [row for row in rows if row.wishes[0].target.name not in change.stayed]
    with understanding_of(old, threads) as before:
        were_right = [is_right(before, row) for row in stayed]
    with understanding_of(new, threads) as after:
        paired = Paired.of(were_right, [is_right(after, row) for row in stayed])
        right = sum(is_right(after, row) for row in changed)
        own = read_own(new.own, new.home) if new.own else []
        own_right = sum(is_right(after, row) for row in own)
    return Updated(change, paired, right, len(changed), own_right, len(own), paired.p_worse >= ALPHA)


def is_naming(row: Row) -> bool:
    """Whether a row's one wish is about an entity that the sentence calls by its name, so that the call is the same in
    every house that has it.
    """
    name = row.wishes[0].target.name.lower()
    return len(row.wishes) == 1 and bool(name) and name in row.sentence.lower()
