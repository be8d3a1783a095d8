"""The files of a tutor's rounds: one a step, and the ledger of the decisions.

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
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ....disk import cannot_write, json_lines, json_text, read_object, replaced
from .options import STEPS
from .results import RoundResult, result_of

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
            write_ledger(self.out)
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


def write_ledger(out: Path) -> None:
    with replaced(out / LEDGER) as beside:
        beside.write_text(json_lines(ledger_lines(out)), encoding="utf-8")


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
