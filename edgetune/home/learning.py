"""A house is made from its entities: rows are drawn, an encoder learns them, and other rows measure it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..disk import new_folder
from ..errors import DataError
from ..formats.named import find_model
from ..runs.train import train
from ..serving.vectors import vectors
from ..training.callbacks import RunCallbacks
from .answering import Understanding
from .entities import Entity, Home, read_home
from .fields import training_row
from .house import ENCODER, ENTITIES, OWN_ROWS, ROWS, Facts, House, write_facts, write_rows
from .language import Language, language_of
from .own import read_own, with_own
from .recipe import LEAST_ROWS, Recipe
from .rows import Row, Rows

HELD_OUT = 10  # of how many rows one measures the house


@dataclass(frozen=True)
class Drawn:
    """The rows of a house: those to learn, and those that measure it."""

    home: Home
    language: Language
    learned: list[Row]
    held: list[Row]


def draw_rows(entities: str | Path, recipe: Recipe) -> Drawn:
    """Raises the errors of read_home and language_of, and DataError for a house with too little to say."""
    home = read_home(entities)
    language = language_of(recipe.language)
    rows = Rows(home, language, recipe.seed, shopping_list(home, language, recipe.encoder)).draw(recipe.count)
    if recipe.own:
        rows = with_own(rows, read_own(recipe.own, home))
    if len(rows) < LEAST_ROWS // 2:
        raise DataError(f"{entities} gives {len(rows)} different sentences, the least is {LEAST_ROWS // 2}",
                        "add entities that can be switched or asked about")
    return Drawn(home, language, rows[len(rows) // HELD_OUT:], rows[:len(rows) // HELD_OUT])


def shopping_list(home: Home, language: Language, encoder: str) -> Entity | None:
    """The list of things to buy: of several lists the one whose name an encoder finds nearest to these words."""
    lists = [one for one in home.entities if one.domain == "todo"]
    if len(lists) < 2:
        return lists[0] if lists else None
    wanted, *found = vectors(encoder, [language.texts["shopping"], *(one.name for one in lists)])
    return lists[int(np.argmax(np.stack(found) @ wanted))]


def make_house(entities: str | Path, out: str | Path, recipe: Recipe, *, threads: int = 0,
               callbacks: RunCallbacks | None = None, on_step: Callable[[str], None] = lambda _: None) -> House:
    """Draws rows, trains, measures, and writes the new folder `out`. on_step: told what comes next. Raises the errors
    of draw_rows and train.
    """
    on_step("drawing sentences")
    drawn = draw_rows(entities, recipe)
    with new_folder(Path(out)) as folder:
        shutil.copyfile(entities, folder / ENTITIES)
        if recipe.own:
            shutil.copyfile(recipe.own, folder / OWN_ROWS)
        write_rows(folder / ROWS, [*drawn.held, *drawn.learned])
        on_step(f"{len(drawn.learned)} sentences: {recipe.encoder} learns them")
        rows = [row for one in drawn.learned if (row := training_row(one, drawn.language))]
        train(recipe.encoder, rows, folder / ENCODER, answers=False, callbacks=callbacks, threads=threads,
              seed=recipe.seed, checkpoint_every="never")
        on_step(f"asking {len(drawn.held)} others")
        understanding = Understanding(find_model(recipe.encoder), folder / ENCODER, drawn.home, drawn.language,
                                      threads)
        right = sum(is_right(understanding, row) for row in drawn.held)
        facts = Facts(recipe.language, recipe.count, recipe.seed, recipe.encoder, len(drawn.learned), right,
                      len(drawn.held))
        write_facts(folder, facts)
    return House.open(out)


def is_right(understanding: Understanding, row: Row) -> bool:
    """Whether a row's sentence gives its calls."""
    return understanding.understand(row.sentence).calls == row.calls
