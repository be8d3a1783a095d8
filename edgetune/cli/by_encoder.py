"""What the commands that answer do with an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from ..data.formats import Columns
    from ..evaluation.served import Grades
    from ..formats.gguf import Gguf
    from ..serving.classifier import Classifier


def classifier_of(model: Gguf, adapter: Path | None, threads: int) -> Classifier:
    """An encoder with its head. Raises UsageError without an adapter."""
    from ..serving.classifier import Classifier
    if adapter is None:
        raise UsageError(f"{model.path} is an encoder, which answers with a head that was trained",
                         "name it with --adapter")
    return Classifier(model, adapter, threads)


def graded_by_encoder(model: Gguf, adapters: Sequence[Path | None], data: Path, columns: Columns, limit: int | None,
                      threads: int) -> list[Grades]:
    """Grades with each adapter: of labels, or of vectors where one of them was trained for these; None: without one."""
    from ..data import labelled, paired
    from ..data.files import read_rows
    from ..data.formats import recognised
    from ..evaluation.labels import grade_labels
    if any(adapter and _is_of_vectors(adapter) for adapter in adapters):
        from ..evaluation.retrieval import grade_vectors
        from ..serving.encoder import Encoder
        pairs = [recognised(row, [paired], columns) for _, row in read_rows(data)]
        encoder = Encoder(model, threads)
        return [grade_vectors(encoder, adapter, pairs, limit) for adapter in adapters]
    rows = [recognised(row, [labelled], columns) for _, row in read_rows(data)]
    graded = []
    for adapter in adapters:
        with classifier_of(model, adapter, threads) as served:
            graded.append(grade_labels(served, rows, limit))
    return graded


def _is_of_vectors(adapter: Path) -> bool:
    """Whether an adapter of an encoder has no labels, as `--method embed` makes it."""
    from ..adapters.store import read_any
    return not read_any(adapter)[1].objective
