"""A house whose entities changed, or whose people corrected it, is trained again. It replaces the old one unless it is
worse on what stayed, or no better on what it was made for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...disk import alone
from ...errors import UsageError
from ...evaluation.acceptance import Decision, Given, HeldOut, Value, decide
from ...serving.encoder import UNLIMITED
from ...training.callbacks import RunCallbacks
from ...training.config import TrainConfig
from .entities import Home, read_home
from .house import ENTITIES, House, absolute, remove, replace_house, trained_place
from .language import language_of
from .learning import is_right, make_house
from .own import Sentence, plain, read_sentences
from .recipe import Recipe
from .rows import HouseRow, RowDrawer, read_own
from .tools import bare
from .understanding import understanding_of

RIGHT, WRONG = (1.0, 0.0), (0.0, 0.0)  # values of an answer
ASKED = 600  # sentences that are drawn, of which those count that name an entity
NAMING = {"name", "todo_list"}  # arguments that name an entity
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
    """The new house compared with the old one, on sentences drawn about entities that stayed, about the others
    (`changed`), and on a person's own (`own`). right, own_right: of `changed` and `own`, by the new one.
    """

    change: Change
    stayed: Decision
    changed: Decision
    own: Decision
    right: int
    own_right: int

    @property
    def replaced(self) -> bool:
        """Returns whether the new house takes the old one's place: it is worse on none of the three, and of the
        sentences for which it was made it answers more right than the old one, or all.
        """
        is_worse = any(group.is_worse for group in (self.stayed, self.changed, self.own))
        sought = self.changed.right + self.own.right
        right = self.right + self.own_right
        return not is_worse and (sought.wins > sought.losses or right == sought.rows)


def update_house(folder: str | Path, entities: str | Path | None = None, own: str | Path = "", *, memory: str = "",
                 threads: int = 0, callbacks: RunCallbacks | None = None,
                 on_step: Callable[[str], None] = lambda _: None) -> Updated:
    """Trains a house on changed entities, on a person's further rows, or on both. The old one is kept as FOLDER.before.
    entities: None for those of the house. own: file of the rows; they come before the house's own ones with the same
    sentences. Raises UsageError where nothing has changed, or another process updates the house, and the errors of
    House.open, read_home and make_house. Whenever it ends, the house opens: as the old one, or as the new one.
    """
    folder = absolute(folder)
    House.open(folder)  # refuses what is no house
    with alone(folder):
        old = House.open(folder)  # another update may have replaced it since
        entities = old.folder / ENTITIES if entities is None else Path(entities)
        home = read_home(entities)
        change = Change.of(old.home, home)
        if not change and not own:
            raise UsageError(f"{entities} has the same entities as {folder}", "train a new house for other sentences, "
                             "or name a file of your own by --own")
        given = read_sentences(own) if own else ()  # of equal sentences these count
        rows = list({plain(row["sentence"]): (place, row) for place, row in (*renamed_own(old, home), *given)}.values())
        facts = old.facts
        recipe = Recipe(facts.language, facts.count, facts.seed, **facts.models)
        made = trained_place(folder)
        remove(made)
        new = make_house(entities, made, recipe, rows, memory=memory, threads=threads, callbacks=callbacks,
                         on_step=on_step)
        on_step("asking the old house and the new one")
        updated = compared(old, new, change, threads, TrainConfig(memory=memory).memory_here())
        if updated.replaced:
            replace_house(folder, made)
    return updated


def renamed_own(old: House, new: Home) -> list[Sentence]:
    """A person's own rows of a house with the new names of entities, without rows about those that are gone. Raises the
    errors of read_own.
    """
    if not old.own:
        return []
    read_own(old.own, old.home)
    names = {one.id: one.name for one in new.entities}
    renamed = {one.name: names.get(one.id, "") for one in old.home.entities}
    kept = []
    for place, row in read_sentences(old.own):
        calls = [{**call, "arguments": {**(call.get("arguments") or {})}} for call in row["calls"]]
        for call in calls:
            for key in NAMING & call["arguments"].keys():
                call["arguments"][key] = renamed.get(bare(call["arguments"][key]), call["arguments"][key])
        if all("" not in (call["arguments"].get(key) for key in NAMING) for call in calls):
            kept.append((place, {**row, "calls": calls}))
    return kept


def compared(old: House, new: House, change: Change, threads: int, budget: int = UNLIMITED) -> Updated:
    """What both say to a person's own sentences, and to drawn ones that name an entity, which nothing learned. budget:
    bytes of this process.
    """
    drawn = RowDrawer(new.home, language_of(new.facts.language), new.facts.seed + OTHER_SEED).draw(ASKED)
    rows = [row for row in drawn if is_naming(row)]
    stayed = [row for row in rows if row.wishes[0].target.name in change.stayed]
    changed = [row for row in rows if row.wishes[0].target.name not in change.stayed]
    own = read_own(new.own, new.home) if new.own else []
    groups = (stayed, changed, own)
    was, now = (_answered(house, groups, threads, budget) for house in (old, new))
    populations = (HeldOut(), HeldOut(), Given())
    decisions = [decide(before, after, population) for before, after, population in
                 zip(was, now, populations, strict=True)]
    _, right, own_right = (sum(value == RIGHT for value in values) for values in now)
    return Updated(change, decisions[0], decisions[1], decisions[2], right, own_right)


def _answered(house: House, groups: Sequence[Sequence[HouseRow]], threads: int, budget: int) -> list[list[Value]]:
    """The values of a house's answers. Nothing of it stays open."""
    with understanding_of(house, threads, budget) as understanding:
        return [[RIGHT if is_right(understanding, row) else WRONG for row in group] for group in groups]


def is_naming(row: HouseRow) -> bool:
    """Whether a row's one wish is about an entity that the sentence calls by its name, so that the call is the same in
    every house that has it.
    """
    name = row.wishes[0].target.name.lower()
    return len(row.wishes) == 1 and bool(name) and name in row.sentence.lower()
