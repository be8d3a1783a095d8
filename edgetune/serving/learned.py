"""The objective by which an adapter of an encoder learned: it knows the labels, or the form of JSON, of its answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..adapters import store
from ..adapters.base import Artifact
from ..errors import FormatError, NotFoundError, UsageError
from ..formats.named import stored_models
from ..objectives.base import read_objective
from ..objectives.labelling import Labelling


def learned(found: Artifact, source: str) -> Labelling:
    """The objective of an adapter. Raises FormatError for one without labels, or without a head that they need. source:
    names it.
    """
    if not found.objective:
        raise FormatError(f"{source} has no labels", "name an adapter that was trained on labels or JSON")
    try:
        objective = read_objective(found.objective)
    except (UsageError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{source} is damaged: its labels are not readable ({error})",
                          "take an earlier adapter") from None
    if not isinstance(objective, Labelling) or not objective.is_fitted:
        raise FormatError(f"{source} has no labels", "name an adapter that was trained on labels or JSON")
    for head in objective.heads:
        values = found.tensors.get(f"head.{head.parameters}")
        if values is None or not np.isfinite(values).all():
            raise FormatError(f"{source} has no head for {head.size} {head.parameters}", "take an earlier adapter")
    return objective


def encoder_of(adapter: Path) -> Path:
    """The file of the encoder that an adapter was trained on: where it was then, or among pulled models. Raises
    FormatError for an adapter without labels, and NotFoundError.
    """
    file, found = store.read_any(adapter)
    learned(found, str(adapter))
    name = store.base_of(file)[0]
    recorded = Path(store.read_run(file.path.parent).get("base", {}).get("path") or name)
    for path in (recorded, *(path for _, path in stored_models() if path.name == name)):
        if path.exists():
            return path
    raise NotFoundError(f"{adapter} was trained on {recorded}, which does not exist",
                        "put the encoder there, or get it with edgetune pull")
