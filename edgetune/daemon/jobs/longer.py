"""A job that was judged before it had learned enough trains longer: how often, how long, and which adapter remains.

A held-out loss that no longer falls may have ended the training, while answers can still become right. So in an extra
leg none is measured: its last adapter is judged by what it answers, and of all that were judged the best one remains.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import disk
from ...adapters import store
from ...training.config import TrainConfig
from ...training.length import MOST_EPOCHS, steps_per_epoch

LEGS = 2  # extra ones at most
BEST = "best"  # beside the run: a copy of it as it was when it was judged best
VERDICT = "verdict.json"  # in BEST
FINAL = "final"  # beside the run: BEST takes its place


def legs_done(run: Path) -> int:
    """How many extra legs a run has begun."""
    return len(store.read_run(run).get("legs", []))


def epochs_to_add(run: Path) -> int:
    """As many as its last leg had, between 1 and MOST_EPOCHS."""
    record = store.read_run(run)
    epoch = steps_per_epoch(TrainConfig(batch_size=record["options"]["batch_size"]), record["data"]["rows"])
    done: int = record["steps"] - record["begun_at"]
    return min(max(round(done / epoch), 1), MOST_EPOCHS)


def has_best(run: Path) -> bool:
    return run.with_name(BEST).exists()


def keep_best(run: Path, verdict: Mapping[str, Any]) -> None:
    """Keep a copy of the run with its verdict, unless that of an earlier leg was as good."""
    kept = run.with_name(BEST)
    if kept.exists() and not is_better(verdict, _verdict(kept)):
        return
    shutil.rmtree(kept, ignore_errors=True)
    with disk.new_folder(kept) as beside:
        for file in filter(Path.is_file, run.iterdir()):
            shutil.copyfile(file, beside / file.name)
        (beside / VERDICT).write_text(json.dumps(verdict))


def take_best(run: Path) -> dict[str, Any]:
    """Put the run that was judged best into its place; its verdict. After a kill it is called again."""
    kept = run.with_name(BEST)
    verdict = _verdict(kept)
    run.with_name(FINAL).touch()
    shutil.rmtree(run, ignore_errors=True)
    kept.rename(run)
    return verdict


def is_being_taken(run: Path) -> bool:
    """Whether a kill came while the best one was put into its place."""
    return has_best(run) and run.with_name(FINAL).exists()


def is_better(verdict: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """One that passed, and then one by which more is right, of corrections and held-out rows together."""
    def rank(found: Mapping[str, Any]) -> tuple[bool, int]:
        corrected = found["corrected"] or {"kept": 0}
        return found["passed"], corrected["kept"] + found["new"]["right"]

    return rank(verdict) > rank(other)


def _verdict(kept: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((kept / VERDICT).read_text())
    return found
