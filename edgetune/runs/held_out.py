"""The heads of an encoder learn few held-out rows too, once these have measured them.

A tenth of few rows is much: some labels have two rows in place of three. So the heads are fitted again to the vectors
of all rows, by the regression that begins a training; the adapter, which gives the vectors, stays as it is (figures:
docs/results/encoders.md). LEAST_ROWS held-out rows or more say when an answer is sure, and are not learned. The heads
that were measured are kept in its folder, and more epochs begin from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters import store
from ..data.dataset import Dataset
from ..formats.gguf import Gguf
from ..objectives.base import Objective
from ..objectives.labelling import Labelling
from ..serving.encoder import Encoder
from ..serving.sureness import LEAST_ROWS
from ..training import logistic
from ..training.labelled import penalty

HEAD = "head."  # before the name of a head's parameters, in an adapter
LEARNED = "held_out_learned"  # in run.json: the number of held-out rows that the heads learned


def is_due(record: Mapping[str, Any], objective: Objective, held: Dataset) -> bool:
    """Whether the heads of a run that has ended shall learn its held-out rows: of labels, and of nothing else."""
    is_labels = isinstance(objective, Labelling) and not objective.has_tags
    is_trained = record["status"] == "done" and record["verdict"]["step"] > 0 and not record["start"]
    return is_labels and is_trained and LEARNED not in record and len(held.examples) < LEAST_ROWS


def learn(base: Gguf, out: Path, record: dict[str, Any], rows: Dataset, held: Dataset, objective: Labelling,
          threads: int) -> dict[str, Any]:
    """Fits the heads in the folder of a run to all its rows. Returns run.json's content, which says so."""
    examples = [*rows.examples, *held.examples]
    vectors = Encoder(base, threads).vectors([example.tokens.tolist() for example in examples], out)
    found = store.read_artifact(out, base)
    names = [f"{HEAD}{head.parameters}" for head in objective.heads]
    heads = {name: found.tensors[name] for name in names}
    store.save_beside(out, {**heads, **store.read_beside(out)})  # it has them already if this was killed
    fitted = {}
    for name, targets in zip(names, objective.targets(examples), strict=True):
        k = heads[name].size // (vectors.shape[1] + 1)
        weights, bias = logistic.fit(vectors, targets, k, penalty(vectors, targets, k))
        fitted[name] = np.concatenate([weights.ravel(), bias])
    n = len(held.examples)
    verdict = record["verdict"]
    said = f"{verdict['sentence']} Then its heads learned the {n} held-out rows too: the figures are from before."
    record = {**record, "verdict": {**verdict, "sentence": said}, LEARNED: n}
    store.save_run(out, replace(found, tensors={**found.tensors, **fitted}), base, record)
    return record


def forget(base: Gguf, out: Path) -> None:
    """Restores the heads that were measured, in the folder of a run."""
    if not (kept := {name: array for name, array in store.read_beside(out).items() if name.startswith(HEAD)}):
        return
    found = store.read_artifact(out, base)
    record = {name: value for name, value in store.read_run(out).items() if name != LEARNED}
    store.save_run(out, replace(found, tensors={**found.tensors, **kept}), base, record)
    (out / store.BESIDE).unlink()
