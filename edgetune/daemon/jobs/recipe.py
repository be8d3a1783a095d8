"""The recipe of a job: options from OpenAI's hyperparameters or ours, and rows, divided into learned and held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ... import disk
from ...data import preferences, prompts
from ...data import rows as supervised_rows
from ...data.formats import read_as
from ...data.preferences import is_pair
from ...data.question import digest
from ...data.rows import Row, RowParser
from ...errors import DataError, UnsupportedError, UsageError
from ...evaluation.acceptance import Split
from ...evaluation.graders.rewards import GraderRewards
from ...objectives.base import Objective, make_objective, objectives
from ...objectives.drawn import Rewarded
from ...objectives.labelling import Labelling
from ...objectives.sft import Sft
from ...options import AUTO, declared, kind_of, takes_auto
from ...training.config import FILE_OPTIONS, TrainConfig, train_options
from ...training.length import peak_rate
from ..state.files import Rows
from ..state.holdout import MOST, Holdout
from .rewards import asks, grader_of, translated

OPENAI = {"n_epochs": "epochs", "batch_size": "batch_size", "learning_rate_multiplier": "lr"}
TRAIN = "train.jsonl"  # in the folder of a job: rows to learn
HELD = "held.jsonl"  # rows that are held out
CORRECTED = "corrected.jsonl"  # of a feedback job: corrections that it learns, which its adapter answers too
MAX_CORRECTED = 64  # rows of CORRECTED
MEASURED = "measured.jsonl"  # rows whose loss is measured in training, where the method has none on held-out rows
SELECTING = "selecting.jsonl"  # held-out rows that choose a checkpoint, or a round, and do not decide
SYSTEM = "system.txt"  # the system message of rows without one, where it is not in the options
LEAST_HALVED = 16  # held-out rows; half of fewer could not show that an adapter is better, after some that were not
DRAWN = "drawn.jsonl"  # questions that were drawn from all that people asked, with their right answers,
UNRATED = "unrated.jsonl"  # and without one
ROUNDS = "rounds.json"  # {"rounds": the job of each of the first rows of HELD, which are of earlier jobs}
_MARK = "fresh"  # jobs of an earlier version have it in rows of HELD that are not of earlier jobs


def with_system(config: TrainConfig, folder: Path) -> TrainConfig:
    """Returns the options with the system message in the folder of a job, if there is one."""
    path = folder / SYSTEM
    return replace(config, system=path.read_text(encoding="utf-8")) if path.exists() else config


def method_of(method: Mapping[str, Any] | None, hyperparameters: Mapping[str, Any] | None,
              supervised: str = Sft.method) -> dict[str, Any]:
    """Returns OpenAI's method object, with the older `hyperparameters` in it. supervised: the method by which the model
    learns right answers. Raises UnsupportedError for a method that does not exist, or that the model cannot learn by.
    """
    asked = (method or {}).get("type", Sft.method)
    kind = supervised if asked == Sft.method else asked
    every = by_method()
    if kind not in every:
        raise UnsupportedError(f"the method {kind!r:.40} does not exist here", f"choose from {', '.join(every)}")
    possible = [name for name, found in every.items() if teaches_labels(found) == teaches_labels(every[supervised])]
    if kind not in possible:
        raise UnsupportedError(f"this model cannot learn by the method {kind}", f"choose from {', '.join(possible)}")
    part = (method or {}).get(asked) or {}
    inner = part.get("hyperparameters") or {}
    beside = {name: value for name, value in part.items() if name != "hyperparameters" and value is not None}
    return {"type": kind, kind: {**beside, "hyperparameters": {**(hyperparameters or {}), **inner}}}


def objective_of(method: Mapping[str, Any]) -> tuple[Objective, dict[str, Any]]:
    """Returns the objective of a `method_of`, and training's options; "auto" is the default. Raises UsageError."""
    kind = by_method()[method["type"]]
    asked = dict(method[method["type"]]["hyperparameters"])
    own: dict[str, Any] = {}
    if issubclass(kind, Rewarded):
        asked = translated(kind, asked)
        own = grader_of(method)
    for spec in declared(kind):
        if spec.name not in asked:
            continue
        value = asked.pop(spec.name)
        if value != AUTO or takes_auto(spec) or kind_of(spec) not in (int, float):
            own[spec.name] = _typed(spec.name, value, spec)
    return make_objective(kind.name, own), asked


def teaches_labels(kind: type[Objective]) -> bool:
    """Whether an objective teaches labels, as an encoder learns, or text."""
    return issubclass(kind, Labelling)


def by_method() -> dict[str, type[Objective]]:
    """Returns the objectives by the names of their methods in a job."""
    return {kind.method: kind for kind in objectives(train_options()).values() if not kind.needs_files}


def options(base: TrainConfig, asked: Mapping[str, Any], own: Iterable[str] = ()) -> TrainConfig:
    """Returns `base` with the options in `asked`, by OpenAI's names or TrainConfig's. "auto" leaves OpenAI's options,
    and any other number, as in `base`; only an option of TrainConfig that may be "auto" becomes that.

    own: options of the objective, which a request may name too. Raises UsageError for a name that is not known, a value
    of another type or out of its range.
    """
    family = asked.get("family", base.family)
    name = family if isinstance(family, str) else family.name
    specs = {option: spec for option, spec in train_options(name).items()
             if option not in FILE_OPTIONS and not spec.metadata["local"]}
    given: dict[str, Any] = {}
    for name, value in asked.items():
        if name == "family":
            given[name] = value
            continue
        target = OPENAI.get(name, name)
        if target not in specs:
            known = ", ".join([*OPENAI, *own, *specs])
            raise UsageError(f"there is no hyperparameter {name!r:.80}", f"there are {known}")
        spec = specs[target]
        left_open = name in OPENAI or not takes_auto(spec)
        if value == AUTO and left_open and kind_of(spec) is not str:
            continue
        if target in given:
            raise UsageError(f"{name} and another hyperparameter set the same option", "give one of them")
        given[target] = _typed(name, value, spec)
        if name == "learning_rate_multiplier":
            given[target] *= peak_rate(base, 0)
    if "epochs" in given:
        given.setdefault("steps", 0)
    return replace(base, **given).check()


def _typed(name: str, value: Any, spec: Field[Any]) -> Any:
    """Returns a value of the option's type; an integer is accepted for a float. Raises UsageError for another type."""
    kind = kind_of(spec)
    if takes_auto(spec) and value == AUTO:
        return value
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not kind:
        raise UsageError(f"{name} is {value!r:.40}, not of type {kind.__name__}", f"give it as {kind.__name__}")
    return value


# ---- rows ------------------------------------------------------------------------------------------------------------


class CheckedRows:
    """Rows of a client as `parser` reads them, to iterate over as often as needed. Raises DataError, with its number,
    for a row that it cannot learn from, if it learns, or that the gate cannot use, if it evaluates by them.

    rewards: of a job that learns from rewards, whose grader must find in a row all fields that it names.
    """

    def __init__(self, rows: Iterable[Row], parser: RowParser, learns: bool, judges: bool,
                 rewards: GraderRewards | None = None) -> None:
        self.rows = rows
        self.parser = parser
        self.learns = learns
        self.judges = judges
        self.rewards = rewards

    def __iter__(self) -> Iterator[Row]:
        for number, given in enumerate(self.rows, start=1):
            try:
                rows = read_as(given, self.parser)
                for row in rows:
                    self._check(row)
            except DataError as error:
                raise DataError(f"row {number}: {error.what}", error.hint) from None
            yield from rows

    def _check(self, row: Row) -> None:
        if self.learns:
            self.parser.check_learnable(row)
        if self.rewards and asks(row):
            self.rewards.judge.check_item(row)
        elif self.judges:
            check_judgeable(row)


def check_judgeable(row: Row) -> None:
    """Checks that the gate can evaluate a row: an answer, a text or a pair. Raises DataError for others."""
    try:
        if is_pair(row):
            preferences.check_learnable(row)
        elif isinstance(row, Mapping) and row.get("label") is False:
            raise DataError("a row with label false has no right answer", "")
        else:
            supervised_rows.check_row(row)
    except DataError as error:
        raise DataError(f"it cannot be held out, {error.what}",
                        f"name a validation file with rows of {supervised_rows.EXPECTED}, or of pairs") from None


@dataclass(frozen=True)
class DrawnQuestions:
    """Questions that were drawn from all that people asked. rated: rows with the right answer; unrated: rows without
    an answer.
    """

    rated: Sequence[Row] = ()
    unrated: Sequence[Row] = ()

    def __len__(self) -> int:
        return len(self.rated) + len(self.unrated)


NONE_DRAWN = DrawnQuestions()


def divide(rows: Iterable[Row] | None, held: Iterable[Row] | None, folder: Path, holdout: Holdout,
           rounds: Sequence[str] = (), corrected: Iterable[Row] = (),
           measured: Iterable[Row] = (), drawn: DrawnQuestions = NONE_DRAWN) -> dict[str, dict[str, Any]]:
    """Writes a job's rows into `folder`; returns rows and hash of either side. rows: None: it learns none, and may hold
    none out. held: None takes a part of `rows`, of which the gate uses MOST at most. A row that is held out is never
    learned, even if it is in both. rounds: the job of each of the first rows of `held`, which are of earlier jobs.
    corrected: corrections among the rows to learn, of which MAX_CORRECTED are kept apart. measured: rows for MEASURED.
    drawn: questions that decide, which choose nothing.

    Rows are read twice, and hashed once. Raises DataError where nothing is left to learn, or nothing to hold out.
    """
    learns = rows is not None
    rows = rows or ()
    if held is None:
        digests = [digest(row) for row in rows]
        apart = holdout.divide(digests)
        asked = holdout.lowest(apart, MOST)
        learned = (row for row, name in zip(rows, digests, strict=True) if name not in apart)
        judging: Iterable[Row] = (row for row, name in zip(rows, digests, strict=True) if name in asked)
    else:
        apart = {digest(row) for row in held}
        learned = (row for row in rows if digest(row) not in apart)
        judging = held
    sides = {"train": _write(folder / TRAIN, learned), "held_out": _write(folder / HELD, judging)}
    for name, side in sides.items():
        if learns and not side["rows"] and not (name == "held_out" and drawn):
            raise DataError(f"no rows are left to {'learn' if name == 'train' else 'hold out'}",
                            "a row that is held out is not learned: give other rows")
    _write(folder / CORRECTED, islice(corrected, MAX_CORRECTED))
    _write(folder / MEASURED, measured)
    _write(folder / DRAWN, drawn.rated)
    _write(folder / UNRATED, drawn.unrated)
    _write_lines(folder / ROUNDS, [json.dumps({"rounds": [*rounds]})])
    return sides


def held_rows(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns a job's held-out rows, and the earlier jobs of the first ones; "" where no version wrote it."""
    rows = list(Rows(folder / HELD))
    path = folder / ROUNDS
    if path.exists():
        found = json.loads(path.read_text())
        return rows, found["rounds"] if "rounds" in found else [""] * int(found["established"])
    marked = sum(_MARK in row for row in rows)
    unmarked = [{key: value for key, value in row.items() if key != _MARK} for row in rows]
    return unmarked, [""] * (len(rows) - marked if marked else 0)


def drawn_rows(folder: Path) -> DrawnQuestions:
    """Returns the questions of a job that were drawn; an earlier version drew none."""
    rated, unrated = ([*Rows(folder / name)] if (folder / name).exists() else [] for name in (DRAWN, UNRATED))
    return DrawnQuestions(rated, unrated)


def halve(folder: Path, parser: RowParser) -> int:
    """Moves half of a job's held-out rows to SELECTING, so that no row that chooses the checkpoint decides whether it
    becomes active. Returns their number; 0 where nothing is measured on them, or they are fewer than LEAST_HALVED.
    """
    rows = [*Rows(folder / HELD)]
    split = Split.of(map(digest, rows))
    if len(split.selecting) < LEAST_HALVED // 2 or not _is_measurable(folder, parser):
        return 0
    sides = {name: _write(folder / name, (row for row in rows if digest(row) in side))
             for name, side in ((SELECTING, split.selecting), (HELD, split.deciding))}
    return int(sides[SELECTING]["rows"])


def measured_file(folder: Path, parser: RowParser) -> Path | None:
    """Returns the file of rows on which a training measures the loss, or the reward, of an objective that reads rows by
    `parser`. These are the held-out rows, if it has a loss on them, unless others are kept for that.
    """
    for apart in (folder / MEASURED, folder / SELECTING):
        if apart.exists() and apart.stat().st_size:
            return apart
    held = folder / HELD
    return held if held.stat().st_size and _is_measurable(folder, parser) else None


def _is_measurable(folder: Path, parser: RowParser) -> bool:
    if parser is prompts:
        return all(asks(row) for row in Rows(folder / HELD))
    for row in islice(Rows(folder / HELD), 1):
        try:
            parser.shape_of(row)
        except DataError:
            return False
    return True


def corrected_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns corrections that the job learns; only feedback jobs have some, but not those of an earlier version."""
    path = folder / CORRECTED
    return list(Rows(path)) if path.exists() else []


def _write(path: Path, rows: Iterable[Row]) -> dict[str, Any]:
    count = 0
    sha256 = hashlib.sha256()

    def lines() -> Iterator[str]:
        nonlocal count
        for row in rows:
            line = json.dumps(row)
            sha256.update(line.encode() + b"\n")
            count += 1
            yield line

    _write_lines(path, lines())
    return {"rows": count, "sha256": sha256.hexdigest()}


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    try:
        with path.open("wb") as out:
            for line in lines:
                out.write(line.encode() + b"\n")
    except OSError as error:
        raise disk.cannot_write(path, error) from None
