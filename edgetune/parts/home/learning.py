"""A house is made from its entities: rows are drawn, an encoder or a model that writes text learns them, and other rows
measure it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...data.loader import NONE
from ...disk import json_lines, new_folder, refuse_existing
from ...errors import DataError, Interrupted
from ...runs.train import train
from ...serving.encoder import UNLIMITED, vectors
from ...serving.sureness import Sureness
from ...training.callbacks import RunCallbacks
from ...training.config import TrainConfig
from .completions import lines_of, training_row
from .entities import Entity, Home, read_home
from .house import ENTITIES, OWN_ROWS, ROWS, Facts, House, write_facts, write_rows
from .language import HouseLanguage, language_of
from .own import Sentence, read_sentences
from .recipe import DECODER, ENCODER, LEAST_ROWS, Recipe
from .rows import HouseRow, RowDrawer, rows_of, with_own
from .tools import Call
from .understanding import SURE, Understanding, by_encoder, check_memory, decoder_of
from .wishes import calls_of

HELD_OUT = 10  # of how many rows one measures the house
PASSES = 2  # of a model that writes text over the rows


@dataclass(frozen=True)
class HouseRows:
    """The rows of a house: those to learn, and those that measure it. own: a person's own ones, which are learned."""

    home: Home
    language: HouseLanguage
    learned: list[HouseRow]
    held: list[HouseRow]
    own: Sequence[Sentence]


def draw_rows(entities: str | Path, recipe: Recipe, own: Sequence[Sentence] | None = None) -> HouseRows:
    """Draws the rows of a house. own: in place of the recipe's. Raises the errors of read_home, language_of and
    rows_of, and DataError for a house with too little to say.
    """
    home = read_home(entities)
    language = language_of(recipe.language)
    if own is None:
        own = list(read_sentences(recipe.own)) if recipe.own else []
    learned = rows_of(own, home)
    shopping = shopping_list(home, language, recipe.encoder)
    templates = language_of(recipe.language)  # they go with what draws: some MiB, which training needs
    rows = with_own(RowDrawer(home, templates, recipe.seed, shopping).draw(recipe.count), learned)
    del templates
    if len(rows) < LEAST_ROWS // 2:
        raise DataError(f"{entities} gives {len(rows)} different sentences, the least is {LEAST_ROWS // 2}",
                        "add entities that can be switched or asked about")
    return HouseRows(home, language, rows[len(rows) // HELD_OUT:], rows[:len(rows) // HELD_OUT], own)


def shopping_list(home: Home, language: HouseLanguage, encoder: str) -> Entity | None:
    """The list of things to buy: of several lists the one whose name an encoder finds nearest to these words."""
    lists = [one for one in home.entities if one.domain == "todo"]
    if len(lists) < 2:
        return lists[0] if lists else None
    wanted, *found = vectors(encoder, [language.texts["shopping"], *(one.name for one in lists)])
    return lists[int(np.argmax(np.stack(found) @ wanted))]


def make_house(entities: str | Path, out: str | Path, recipe: Recipe, own: Sequence[Sentence] | None = None, *,
               memory: str = "", threads: int = 0, callbacks: RunCallbacks | None = None,
               on_step: Callable[[str], None] = lambda _: None) -> House:
    """Draws rows, trains, measures, and writes the new folder `out`. own: as in draw_rows. memory, threads, callbacks:
    of train. on_step: told what comes next. Raises the errors of draw_rows, check_memory and train, and Interrupted,
    after which nothing is kept.
    """
    refuse_existing(Path(out))
    on_step("drawing sentences")
    drawn = draw_rows(entities, recipe, own)
    options = TrainConfig(memory=memory)
    check_memory(recipe.models, options.memory_here(), options.memory_asked)
    with new_folder(Path(out)) as folder, stopped_without_state():
        shutil.copyfile(entities, folder / ENTITIES)
        if drawn.own:
            (folder / OWN_ROWS).write_text(json_lines(row for _, row in drawn.own), encoding="utf-8")
        write_rows(folder / ROWS, [*drawn.held, *drawn.learned])
        learn = {ENCODER: learn_by_encoder, DECODER: learn_by_decoder}
        for kind, model in recipe.models.items():
            on_step(f"{len(drawn.learned)} sentences: {model} learns them")
            learn[kind](model, drawn, folder / kind, memory=memory, threads=threads, seed=recipe.seed,
                        callbacks=callbacks)
        on_step(f"asking {len(drawn.held)} others")
        facts = Facts(recipe.language, recipe.count, recipe.seed, recipe.models.get(ENCODER, ""), len(drawn.learned),
                      decoder=recipe.models.get(DECODER, ""))
        write_facts(folder, measured(House(folder, facts, drawn.home), drawn.held, threads, options.memory_here()))
    return House.open(out)


@contextmanager
def stopped_without_state() -> Iterator[None]:
    """Says so of a training that is stopped: its folder is not kept, and so it cannot be continued."""
    try:
        yield
    except Interrupted as stop:
        raise Interrupted(stop.what, "nothing is kept of it: the same command begins again") from None


def learn_by_encoder(model: str, drawn: HouseRows, out: Path, **options: Any) -> None:
    """Trains an encoder on the fields of wishes."""
    rows = [row for one in drawn.learned if (row := training_row(one, drawn.language))]
    train(model, rows, out, answers=False, checkpoint_every="never", **options)


def learn_by_decoder(model: str, drawn: HouseRows, out: Path, **options: Any) -> None:
    """Trains a model that writes text on lines of calls. Its adapter answers nothing else, so that it needs no anchors,
    and the sentences that are held out measure it.
    """
    rows = [{"prompt": drawn.language.in_digits(row.sentence), "completion": lines_of(row.wishes, drawn.home)}
            for row in drawn.learned]
    train(model, rows, out, NONE, answers=False, checkpoint_every="never", epochs=PASSES, anchors=0, **options)


def measured(house: House, held: list[HouseRow], threads: int, budget: int = UNLIMITED) -> Facts:
    """The facts of a house, with how many held-out sentences give the right calls, and when its decoder is sure.
    budget: bytes of this process.
    """
    facts = replace(house.facts, asked=len(held))
    written: list[list[Call]] = []
    if facts.decoder:
        with decoder_of(house, threads, budget) as decoder:
            found = [decoder.written(row.sentence) for row in held]
        written = [calls_of(wishes) for wishes, _ in found]
        are_right = [calls == row.calls for calls, row in zip(written, held, strict=True)]
        if sureness := Sureness.of([probability for _, probability in found], are_right):
            facts = replace(facts, limit=min(sureness.threshold_up_to(SURE), 1.0))
    if (encoder := by_encoder(house, threads, budget)) is None:
        return replace(facts, right=sum(are_right))
    understood = [encoder.understand(row.sentence) for row in held]
    calls = [written[i] if written and not one.is_sure else one.calls for i, one in enumerate(understood)]
    return replace(facts, right=sum(said == row.calls for said, row in zip(calls, held, strict=True)))


def is_right(understanding: Understanding, row: HouseRow) -> bool:
    """Whether a row's sentence gives its calls."""
    return understanding.understand(row.sentence).calls == row.calls
