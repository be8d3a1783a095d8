"""The folder of a tutor's rounds: a file a step, and the ledger of what was decided.

    OUT/adapter.gguf, run.json      what is published: `edgetune chat --adapter OUT`
    OUT/tutor.json                  what the rounds were begun with
    OUT/ledger.jsonl                a line a step: seeds, hashes, counts, decisions, tokens; no text that anybody wrote
    OUT/times.jsonl                 a line a step: the seconds it took here
    OUT/rounds/001/select.json ...  what each step found
    OUT/rounds/001/train/           its run of training
    OUT/rounds/001/candidate/       the adapter that the gate judged; those of the last three that were published stay

A step's file appears whole or not at all. The ledger is a function of these files and is written anew after each.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk import cannot_write, json_text, read_object, replaced

BEGUN = "tutor.json"
LEDGER = "ledger.jsonl"
TIMES = "times.jsonl"
STEPS = ("select", "generate", "evaluate", "correct", "rows", "train", "search", "gate", "publish")
TRAINED = "train"  # the folder of a round's run
CANDIDATE = "candidate"

MEND = "remove it, and continue with the same command"

Found = dict[str, Any]  # what a step found; "facts" of it is what the ledger says


@dataclass(frozen=True)
class Round:
    """The folder of one round, counted from 1."""

    out: Path
    number: int

    @property
    def folder(self) -> Path:
        return self.out / "rounds" / f"{self.number:03}"

    @property
    def trained(self) -> Path:
        return self.folder / TRAINED

    @property
    def candidate(self) -> Path:
        return self.folder / CANDIDATE

    def file(self, step: str) -> Path:
        return self.folder / f"{step}.json"

    def read(self, step: str) -> Found | None:
        """What a step found; None where it is not done. Raises FormatError for a damaged file."""
        return read_object(self.file(step), MEND)

    def step(self, step: str, make: Callable[[], Found]) -> Found:
        """What a step found, made now where it is not done."""
        found = self.read(step)
        if found is None:
            began = time.monotonic()
            found = make()
            write_object(self.file(step), found)
            write_ledger(self.out)
            _append(self.out / TIMES, {"round": self.number, "step": step, "seconds": time.monotonic() - began})
        return found


def rounds_of(out: Path) -> list[Round]:
    """Those that were begun, in their order."""
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
        for step in STEPS:
            if (found := round.read(step)) is not None:
                digest = hashlib.sha256(round.file(step).read_bytes()).hexdigest()
                yield {"round": round.number, "step": step, "sha256": digest, **found["facts"]}


def write_ledger(out: Path) -> None:
    with replaced(out / LEDGER) as beside:
        beside.write_text("".join(json_text(line) + "\n" for line in ledger_lines(out)), encoding="utf-8")


def seconds_of(out: Path) -> dict[tuple[int, str], float]:
    """By round and step, as far as they were written down."""
    found: dict[tuple[int, str], float] = {}
    if (out / TIMES).exists():
        for line in (out / TIMES).read_text("utf-8").splitlines():
            try:
                told = json.loads(line)
                found[told["round"], told["step"]] = told["seconds"]
            except (ValueError, KeyError, TypeError):
                continue  # a line that a power cut tore
    return found


def _append(path: Path, line: Mapping[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from None
