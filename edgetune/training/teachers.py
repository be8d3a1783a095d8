"""Answers of the student or of the rows, with what a teacher on this device says of them, or a teacher's file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..adapters.base import Artifact
from ..backends.arena import arena_bytes
from ..data.lengths import Lengths
from ..data.packing import Batch, Example, example_key
from ..data.teacher_file import TeacherFile, tokenizer_digest
from ..errors import DataError, MismatchError
from ..formats.bundle import Bundle, open_bundle
from ..formats.named import find_model
from ..models.base import Structure
from ..models.choices import POSITIONS
from ..models.decoder import Decoder, Model
from ..models.stream import sizes
from ..objectives.base import Objective
from ..objectives.distill import AGAIN, Distill
from ..objectives.gkd import Gkd
from ..serving.rollouts.forward import forward_run, network_buffers, open_passes
from . import length
from .answers import AnswerExamples
from .batches import Batches
from .config import TrainConfig
from .passes import LossMeasurement, measure
from .reference import likeliest, with_choices
from .source import Learned, RowExamples, SourceParts, SourceRoom

GROWTH = 8 << 20  # bytes that Python takes for a second network
AT_POSITION = 80  # bytes of a token of a position: its id, log q and log p, and the arrays of a divergence
ROW_COPIES = 2  # of the head's rows of POSITIONS positions
INDEX_GROWTH = 1 << 20  # bytes that Python takes while it reads records


class OnPolicy(AnswerExamples):
    """Answers of the student or of the rows, a step each. The teacher reads them one by one."""

    @classmethod
    def room(cls, objective: Objective, config: TrainConfig, lengths: Lengths, structure: Structure) -> SourceRoom:
        assert isinstance(objective, Gkd)
        found = super().room(objective, config, lengths, structure)
        longest = lengths.longest or config.row_limit
        teacher = teacher_bytes(opened(objective), config, longest)
        return SourceRoom(found.answers, found.keeps_start, found.buffers, teacher)

    def __init__(self, parts: SourceParts) -> None:
        super().__init__(parts)
        assert isinstance(parts.objective, Gkd)
        assert isinstance(parts.decoder, Decoder)
        self.gkd = parts.objective
        bundle = opened(self.gkd)
        if tokenizer_digest(bundle.gguf) != tokenizer_digest(parts.decoder.model.gguf):
            raise MismatchError(f"the teacher {self.gkd.file} has another tokenizer than the student",
                                "take a teacher of the same family, or learn its text: edgetune data answers")
        self.fingerprint = bundle.fingerprint
        run = parts.decoder.run
        self.teacher = open_passes(Model(bundle.gguf), Artifact(), threads=run.threads, max_tokens=run.max_length,
                                   max_length=run.max_length, precision=run.precision, ops=parts.decoder.ops,
                                   shares=True)
        self.teacher.before_block = lambda: parts.decoder.before_block()
        self.references = self
        self._said: dict[int, NDArray[np.float32]] = {}  # by the teacher, by the identity of an answer

    def of_step(self, step: int, batches: Batches) -> Learned:
        micros = self.parts.micros
        self.parts.decoder.before_block()
        micros.computing = True
        is_drawn = self.gkd.is_drawn(step, self.parts.config.seed)
        metrics: Mapping[str, float] = {}
        if is_drawn:
            answers, metrics = self.roller.of_step(step, batches.of_step, batches.examples, batches.steps_per_epoch)
        else:
            answers = self._of_rows(batches.of_step(step))
        telling = [answer for answer in answers if self.gkd.has_signal(answer)]
        self._refer(telling)
        micros.computing = False
        return Learned(telling, self.gkd.count(telling) or 1.0, {**metrics, "student_step": float(is_drawn)},
                       batches.anchors_of_step(step))

    def measure(self, examples: Sequence[Example]) -> LossMeasurement:
        """Measures the student's greedy answers."""
        micros = self.parts.micros
        micros.computing = True
        answers = [answer for answer in self.roller.greedy(examples) if self.gkd.has_signal(answer)]
        self._refer(answers)
        return measure(self.parts.decoder, self.gkd, micros.one_by_one(micros.cut(answers)), self)

    def add_to(self, batch: Batch) -> Batch:
        return with_choices(batch, [self._said[id(one)] for one in batch.examples], self.gkd.needs_top)

    def identity(self) -> dict[str, str]:
        return {"teacher": self.fingerprint}

    def _refer(self, answers: Sequence[Example]) -> None:
        """Has the teacher read each answer."""
        self._said = {id(one): likeliest(self.teacher, one, self.gkd.needs_top) for one in answers}

    def _of_rows(self, prompts: Sequence[Example]) -> list[Example]:
        """The rows' own answers, no longer than those that are drawn."""
        found = []
        for prompt in prompts:
            if not isinstance(json.loads(prompt.item).get("completion"), str):
                raise DataError("a row has no completion, and some steps learn from those of the rows",
                                "give rows of prompt and completion, or --student-share 1")
            for one in self.roller.completions([prompt]):
                end = one.begin + self.gkd.answer_tokens(prompt.longest, self.parts.config.row_limit)
                found.append(Example(one.tokens[:end], one.weights[:end]))
        return found


def opened(objective: Gkd) -> Bundle:
    return open_bundle(find_model(objective.file))


def teacher_bytes(bundle: Bundle, config: TrainConfig, longest: int) -> int:
    """Bytes of memory that the teacher takes: its weights, and what it computes a row of `longest` tokens in."""
    model = Model(bundle.gguf)
    run = forward_run(model, Artifact(), threads=config.threads, max_tokens=longest, max_length=longest,
                      precision=config.precision)
    buffers = network_buffers(model, run)
    weights = sizes(bundle.gguf.tensors.values(), model.shape.n_layer).in_memory(0, longest)
    return weights + arena_bytes(buffers) + GROWTH


class Taught(RowExamples):
    """Rows with what a teacher's file says of them."""

    """The rows, whose records are read from the file in each step."""

    refers: ClassVar[bool] = True

    @classmethod
    def room(cls, objective: Objective, config: TrainConfig, lengths: Lengths, structure: Structure) -> SourceRoom:
        """Arrays of the teacher's tokens at each position, and rows of the head of some positions."""
        k = 1 + objective.needs_top
        batch = lengths.largest(length.batch_of(config, len(lengths.units))) or config.row_limit
        positions = min(batch, config.micro_batch)
        width = structure.head_weights // structure.n_tokens
        return SourceRoom(known=positions * k * AT_POSITION + ROW_COPIES * POSITIONS * k * width * 4 + INDEX_GROWTH)

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
