"""Rows with what a teacher's file says of them, as a source of examples."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from ..data.lengths import Lengths
from ..data.packing import Batch, example_key
from ..data.teacher_file import TeacherFile
from ..errors import DataError
from ..models.base import Structure
from ..models.choices import POSITIONS
from ..objectives.base import Objective
from ..objectives.distill import AGAIN, Distill
from . import length
from .config import TrainConfig
from .source import RowExamples, SourceParts, SourceRoom

AT_POSITION = 80  # bytes of a token of a position: its id, log q and log p, and the arrays of a divergence
ROW_COPIES = 2  # of the head's rows of POSITIONS positions
GROWTH = 1 << 20  # bytes that Python takes while it reads records


class Taught(RowExamples):
    """The rows, whose records are read from the file in each step."""

    refers: ClassVar[bool] = True

    @classmethod
    def room(cls, objective: Objective, config: TrainConfig, lengths: Lengths, structure: Structure) -> SourceRoom:
        """Arrays of the teacher's tokens at each position, and rows of the head of some positions."""
        k = 1 + objective.needs_top
        batch = lengths.largest(length.batch_of(config, len(lengths.units))) or config.row_limit
        positions = min(batch, config.micro_batch)
        width = structure.head_weights // structure.n_tokens
        return SourceRoom(known=positions * k * AT_POSITION + ROW_COPIES * POSITIONS * k * width * 4 + GROWTH)

    def __init__(self, parts: SourceParts) -> None:
        super().__init__(parts)
        assert isinstance(parts.objective, Distill)
        self.references: Records = Records(TeacherFile(parts.objective.teacher))
        parts.decoder.temperature = self.references.file.header.temperature

    def identity(self) -> dict[str, str]:
        return {"teacher-file": self.references.file.header.sha256}


class Records:
    """References of a batch by the teacher's file."""

    def __init__(self, file: TeacherFile) -> None:
        self.file = file

    def add_to(self, batch: Batch) -> Batch:
        """The batch with choices and log q of them. Raises DataError for a row that the file does not have."""
        try:
            found = [self.file.read(example_key(example)) for example in batch.examples]
        except KeyError:
            raise DataError(f"a row is not in {self.file.path}", AGAIN) from None
        return replace(batch, choices=np.concatenate([ids for ids, _ in found]),
                       choices_reference=np.concatenate([logq for _, logq in found]))
