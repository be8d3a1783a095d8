"""The folder of a tutor's rounds: one file a step, the ledger of the decisions, the published adapter.

    OUT/adapter.gguf, run.json      the published adapter: `edgetune chat --adapter OUT`
    OUT/tutor.json                  the model, files and options of the rounds
    OUT/ledger.jsonl                a line a step: seeds, hashes, counts, decisions; no text that anybody wrote
    OUT/times.jsonl                 a line a step: the seconds it took here
    OUT/rounds/001/draw.json ...    the result of each step
    OUT/rounds/001/labels/, train/  adapters: of the labelled rows alone, and with the chosen answers
    OUT/rounds/001/refit/           the same steps again with the held-out rows, after the gate

A step's file appears whole or not at all. The ledger is a function of these files and is rewritten after each step.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from .... import disk
from ....adapters import store
from ....disk import cannot_write, json_lines, json_text, read_object, replaced
from ....errors import MismatchError, UsageError
from ....formats.gguf import Gguf
from .options import STEPS
from .results import Published, RoundResult, result_of

BEGUN = "tutor.json"
LEDGER = "ledger.jsonl"
TIMES = "times.jsonl"
REFIT = "refit"
MEND = "remove it, and continue with the same command"
R = TypeVar("R", bound=RoundResult)


@dataclass(frozen=True)
class Round:
    """The folder of a round, from 1; 0 holds the start. part: REFIT where held-out rows are learned as well."""

    out: Path
    number: int
    part: str = ""

    @property
    def folder(self) -> Path:
        return self.out / "rounds" / f"{self.number:03}" / self.part

    @property
    def labels(self) -> Path:
        return self.folder / "labels"

    @property
    def trained(self) -> Path:
        return self.folder / "train"

    @property
    def refit(self) -> Round:
        return replace(self, part=REFIT)

    def file(self, step: str) -> Path:
        return self.folder / f"{step}.json"

    def name(self, step: str) -> str:
        return f"{self.part} {step}".strip()

    def read(self, kind: type[R]) -> R | None:
        """The result of a step; None where it is not done. Raises FormatError for a damaged file."""
        found = read_object(self.file(kind.step), MEND)
        return None if found is None else result_of(kind, found, str(self.file(kind.step)))

    def step(self, kind: type[R], make: Callable[[], R]) -> R:
        """The result of a step, which is made now where it is not done."""
        found = self.read(kind)
        if found is None:
            began = time.monotonic()
            found = make()
            write_object(self.file(kind.step), found.to_json())
            with replaced(self.out / LEDGER) as beside:
                beside.write_text(json_lines(ledger_lines(self.out)), encoding="utf-8")
            line = {"round": self.number, "step": self.name(kind.step), "seconds": time.monotonic() - began}
            try:
                with (self.out / TIMES).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise cannot_write(self.out / TIMES, error) from None
        return found


def rounds_of(out: Path) -> list[Round]:
    """The rounds that were begun, in order."""
    folders = (out / "rounds").glob("[0-9]*") if (out / "rounds").is_dir() else ()
    return [Round(out, number) for number in sorted(int(folder.name) for folder in folders)]


def write_object(path: Path, found: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    with replaced(path) as beside:
        beside.write_text(json_text(found, indent=1) + "\n", encoding="utf-8")


def ledger_lines(out: Path) -> Iterator[dict[str, Any]]:
    """The facts of every step that is done, with the hash of its file."""
    for round in rounds_of(out):
        for part, step in ((part, step) for part in (round, round.refit) for step in STEPS):
            if (found := read_object(part.file(step), MEND)) is not None:
                digest = hashlib.sha256(part.file(step).read_bytes()).hexdigest()
                yield {"round": round.number, "step": part.name(step), "sha256": digest, **found["facts"]}


def seconds_of(out: Path) -> dict[tuple[int, str], float]:
    found: dict[tuple[int, str], float] = {}
    if (out / TIMES).exists():
        for line in (out / TIMES).read_text("utf-8").splitlines():
            try:
                written = json.loads(line)
                found[written["round"], written["step"]] = written["seconds"]
            except (ValueError, KeyError, TypeError):
                continue  # a line that a power cut tore
    return found


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
