"""A house whose entities changed is trained again, and replaces the old one unless it is worse on what stayed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import UsageError
from ..evaluation.acceptance import Paired
from ..training.callbacks import RunCallbacks
from .entities import Home, read_home
from .house import OWN_ROWS, House
from .language import Language, language_of
from .learning import is_right, make_house
from .opening import understanding_of
from .recipe import Recipe
from .rows import Row, Rows
from .sentences import read_sentences
from .tools import bare

ALPHA = 0.05  # of the test whether the new house is worse
ASKED = 600  # sentences that are drawn, of which those count that name an entity
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
    about the others. replaced: whether the new house took the old one's place.
    """

    change: Change
    stayed: Paired
    right: int
    asked: int
    replaced: bool


def update_house(folder: str | Path, entities: str | Path, *, memory: str = "", threads: int = 0,
                 callbacks: RunCallbacks | None = None,
                 on_step: Callable[[str], None] = lambda _: None) -> Updated:
    """Trains a house on changed entities. The old one is kept as FOLDER.before. Raises UsageError where nothing has
    changed, and the errors of House.open, read_home and make_house.
    """
    folder = Path(folder)
    old = House.open(folder)
    change = Change.of(old.home, read_home(entities))
    if not change:
        raise UsageError(f"{entities} has the same entities as {folder}", "train a new house for other sentences")
    facts = old.facts
    made = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    with TemporaryDirectory() as temporary:
        own = renamed_own(old, read_home(entities), Path(temporary) / OWN_ROWS)
        recipe = Recipe(facts.language, facts.count, facts.seed, own, **facts.models)
        new = make_house(entities, made, recipe, memory=memory, threads=threads, callbacks=callbacks, on_step=on_step)
    on_step("asking the old house and the new one")
    updated = compared(old, new, change, language_of(facts.language), threads)
    if updated.replaced:
        before = folder.with_name(f"{folder.name}.before")
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
        made.rename(folder)
    return updated


def renamed_own(old: House, new: Home, path: Path) -> str:
    """The file of a person's own rows with the new names of entities, without rows about those that are gone; "" where
    no row is left.
    """
    names = {one.id: one.name for one in new.entities}
    renamed = {one.name: names.get(one.id, "") for one in old.home.entities}
    kept = []
    for _, row in read_sentences(old.own) if old.own else ():
        calls = [{**call, "arguments": {**call.get("arguments", {})}} for call in row["calls"]]
        for call in calls:
            if name := call["arguments"].get("name"):
                call["arguments"]["name"] = renamed.get(bare(name), name)
        if all(call["arguments"].get("name") != "" for call in calls):
            kept.append({**row, "calls": calls})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
    return str(path) if kept else ""


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
    return Updated(change, paired, right, len(changed), paired.p_worse >= ALPHA)


def is_naming(row: Row) -> bool:
    """Whether a row's one wish is about an entity that the sentence calls by its name, so that the call is the same in
    every house that has it.
    """
    name = row.wishes[0].target.name.lower()
    return len(row.wishes) == 1 and bool(name) and name in row.sentence.lower()
