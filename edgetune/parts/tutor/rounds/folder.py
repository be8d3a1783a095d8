"""The folder of the rounds: its beginning, its published adapter, and the way back to an earlier one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .... import disk
from ....adapters import store
from ....errors import MismatchError, UsageError
from ....formats.gguf import Gguf
from .files import BEGUN, MEND, Round, rounds_of, write_object
from .results import Published

PUBLISHED_RECORD = "published"  # in run.json: the round
VERSION = 2  # of the steps and their files
KEPT_ADAPTERS = 3  # the latest published ones, which can be restored
EARLIER = ("its adapter can be used as it is (edgetune chat --adapter); name another folder with -o for new rounds, or "
           "use the edgetune that made these")


def begun_in(out: Path) -> dict[str, Any] | None:
    """The model, files and options of the rounds in a folder; None if there are none.

    Raises MismatchError for rounds of an earlier edgetune, UsageError for a file.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", "name a folder with -o")
    begun = disk.read_object(out / BEGUN, MEND)
    if begun is not None and begun.get("version") != VERSION:
        raise MismatchError(f"the rounds in {out} are of another edgetune, whose steps were others", EARLIER)
    return begun


def require_rounds(out: Path) -> None:
    """Raises UsageError where a folder has no rounds, errors of `begun_in`."""
    if begun_in(out) is None:
        raise UsageError(f"{out} holds no rounds of a tutor", "name the folder that was given with -o")


def begin(out: Path, given: Mapping[str, Any]) -> None:
    """Begins rounds in a folder, or continues those in it. given: the facts that they depend on, as JSON.

    Raises MismatchError if the rounds were begun with other facts, UsageError for a folder of another kind.
    """
    begun = begun_in(out)
    wanted = {"version": VERSION, **json.loads(json.dumps(given))}
    if begun is None:
        if any(out.iterdir()):
            raise UsageError(f"the output folder {out} exists", "name another with -o, or remove it")
        write_object(out / BEGUN, wanted)
        return
    different = [name for name in {**begun, **wanted} if begun.get(name) != wanted.get(name)]
    if different:
        raise MismatchError(f"the rounds in {out} were begun with another {different[0].replace('_', '-')}",
                            "give the same to continue them, or name another folder with -o")


def keep_start(out: Path, start: Path, gguf: Gguf) -> Path:
    """Copies the start adapter to round 0; it is published until a round's is."""
    round = Round(out, 0)
    if not round.trained.exists():
        adapter = store.open_adapter(start, gguf)
        store.save_adapter(round.trained, adapter.pairs, gguf, adapter.run, schema=adapter.schema)
    round.step(Published, lambda: publish(out, round.trained, gguf, 0))
    return round.trained


def publish(out: Path, adapter: Path, gguf: Gguf, number: int, objection: str = "") -> Published:
    """Publishes an adapter: copies it to the folder itself, from which others open it."""
    found = store.open_adapter(adapter, gguf)
    store.save_schema(out, found.schema)
    store.save_run(out, found.pairs, gguf, {**found.run, PUBLISHED_RECORD: number})
    return Published(str(adapter.relative_to(out)), objection)


def published_rounds(out: Path) -> list[tuple[Round, Path]]:
    found = ((round, round.read(Published)) for round in rounds_of(out))
    return [(round, out / one.adapter) for round, one in found if one]


def remove_old(now: Round, wanted: set[Path]) -> None:
    """Removes the adapters of the rounds up to now, except wanted ones and the last published ones."""
    kept = wanted | {adapter for _, adapter in published_rounds(now.out)[-KEPT_ADAPTERS:]}
    for round in rounds_of(now.out):
        for folder in (round.labels, round.trained, round.refit.labels, round.refit.trained):
            if round.number <= now.number and folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)


def roll_back(out: Path, gguf: Gguf) -> int:
    """Publishes the previously published adapter again; returns its round. Raises UsageError if there is none."""
    require_rounds(out)
    with disk.alone(out):
        now = store.read_run(out).get(PUBLISHED_RECORD, 0)
        earlier = [(round, adapter) for round, adapter in published_rounds(out)
                   if round.number < now and adapter.is_dir()]
        if not earlier:
            raise UsageError(f"nothing was published in {out} before round {now}",
                             f"only the last {KEPT_ADAPTERS} are kept")
        round, adapter = earlier[-1]
        publish(out, adapter, gguf, round.number)
    return round.number
