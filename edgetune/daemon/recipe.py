"""What a job is made of: options from OpenAI's hyperparameters or ours, and rows, divided into learned and held out."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from .. import disk
from ..config import TrainConfig
from ..errors import DataError, UnsupportedError, UsageError
from ..rows import Row
from .files import digest

OPENAI = {"n_epochs": "epochs", "batch_size": "batch_size", "learning_rate_multiplier": "lr"}
AUTO = "auto"  # leaves an option open
TRAIN, HELD = "train.jsonl", "held.jsonl"  # in the folder of a job
HELD_SHARE = 5  # one in so many rows is held out
HELD_LEAST, HELD_MOST = 4, 256  # rows: fewer tell little, more take long to answer
METHODS = ("supervised",)


def method_of(method: Mapping[str, Any] | None, hyperparameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """OpenAI's method object, the older `hyperparameters` taken into it. Raises UnsupportedError for another method."""
    kind = (method or {}).get("type", METHODS[0])
    if kind not in METHODS:
        raise UnsupportedError(f"the method {kind!r:.40} does not exist here", f"there is {', '.join(METHODS)}")
    inner = ((method or {}).get(kind) or {}).get("hyperparameters") or {}
    return {"type": kind, kind: {"hyperparameters": {**(hyperparameters or {}), **inner}}}


def options(base: TrainConfig, asked: Mapping[str, Any]) -> TrainConfig:
    """`base` with what is asked for, by OpenAI's names or TrainConfig's; "auto" leaves an option as it is.

    Raises UsageError for a name that is not known, a value of another type or out of its range.
    """
    types: dict[str, type] = {spec.name: type(spec.default) for spec in fields(TrainConfig)}
    given: dict[str, Any] = {}
    for name, value in asked.items():
        target = OPENAI.get(name, name)
        if target not in types:
            raise UsageError(f"there is no hyperparameter {name!r:.80}", f"there are {', '.join([*OPENAI, *types])}")
        if value == AUTO and types[target] is not str:
            continue
        if target in given:
            raise UsageError(f"{name} says again what another hyperparameter says", "give one of them")
        given[target] = _typed(name, value, types[target])
        if name == "learning_rate_multiplier":
            given[target] *= base.lr
    if "epochs" in given:
        given.setdefault("steps", 0)
    return replace(base, **given).check()


def _typed(name: str, value: Any, kind: type) -> Any:
    """A whole number may stand for a float; nothing else may stand for another."""
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not kind:
        raise UsageError(f"{name} is {value!r:.40}, not of type {kind.__name__}", f"give it as {kind.__name__}")
    return value


# ---- rows ------------------------------------------------------------------------------------------------------------


def held_out(digests: Collection[str]) -> set[str]:
    """Which of these rows are held out: those with the lowest digests, so that a row stays on its side for ever as long
    as there are enough. Raises DataError where there are too few to divide.
    """
    distinct = sorted(set(digests))
    if len(distinct) < 2:
        raise DataError("there are fewer than 2 different rows, none can be held out",
                        "add rows, or name a validation file")
    edge = bisect(distinct, f"{2**256 // HELD_SHARE:064x}")
    half = len(distinct) // 2
    return set(distinct[:min(max(edge, HELD_LEAST), half)])


def divide(rows: Iterable[Row], held: Iterable[Row] | None, folder: Path) -> dict[str, dict[str, Any]]:
    """Write a job's rows into `folder`; rows and hash of either side. held: None takes a part of `rows`, of which the
    gate asks HELD_MOST at most. A row that is held out is never learned, also where both name it.

    Both are gone through twice. Raises DataError where nothing is left to learn, or nothing to judge by.
    """
    source = rows if held is None else held
    digests = [digest(row) for row in source]
    apart = held_out(digests) if held is None else set(digests)
    asked = set(sorted(apart)[:HELD_MOST]) if held is None else apart
    sides = {"train": _write(folder / TRAIN, (row for row in rows if digest(row) not in apart)),
             "held_out": _write(folder / HELD, (row for row in source if digest(row) in asked))}
    for name, side in sides.items():
        if not side["rows"]:
            raise DataError(f"no rows are left to {'learn' if name == 'train' else 'judge by'}",
                            "a row that is held out is not learned: give other rows")
    return sides


def _write(path: Path, rows: Iterable[Row]) -> dict[str, Any]:
    count, sha256 = 0, hashlib.sha256()
    try:
        with path.open("wb") as out:
            for row in rows:
                line = json.dumps(row).encode() + b"\n"
                sha256.update(line)
                out.write(line)
                count += 1
    except OSError as error:
        raise disk.cannot_write(path, error) from None
    return {"rows": count, "sha256": sha256.hexdigest()}
