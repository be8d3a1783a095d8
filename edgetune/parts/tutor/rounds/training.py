"""The training of a round: labelled rows and chosen answers together, by the recipe of `edgetune train`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ....adapters import store
from ....data.dataset import load_rows
from ....formats.shape import read_shape
from ....training.length import reading_limit, steps_per_epoch
from ....training.run import run
from .choosing import LABELLED
from .questions import TutorQuestion
from .results import Trained, TrainingRow
from .setting import CONTINUE, RoundSetting

T = TypeVar("T", bound=Trained)


def labelled_rows(questions: Iterable[TutorQuestion]) -> list[TrainingRow]:
    return [TrainingRow(question.key, question.reference, LABELLED) for question in questions]


def train(setting: RoundSetting, number: int, rows: Sequence[TrainingRow], out: Path, kind: type[T]) -> T:
    """Learns the rows from the rounds' start; one that was stopped continues. Raises Interrupted and `run`'s errors."""
    seed = setting.seed(number, "train")
    config = replace(setting.config, seed=seed)
    setting.look()
    data = load_rows([setting.pool[row.key].with_answer(row.text) for row in rows], setting.tokenizer,
                     max_length=reading_limit(config.max_length, read_shape(setting.bundle.gguf).context),
                     system=setting.system)
    record = store.read_run(out)
    if record.get("status") != "done":  # else it was killed between this and the step's file
        calls = replace(setting.callbacks, name=f"round {number}", resume_by=CONTINUE,
                        on_event=lambda event: setting.callbacks.on_event({**event, "round": number}))
        record = run(setting.bundle, data, out, config, start=setting.start, resume=out.exists(), callbacks=calls)
    store.save_schema(out, data.schema)
    passes = record["steps"] / steps_per_epoch(config, len(rows))
    return kind(seed, record["steps"], round(passes * record["data"]["tokens"]), rows)
