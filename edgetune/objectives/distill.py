"""Distillation from a teacher's file (data/teacher_file.py; Hinton et al. 2015, arXiv 1503.02531; generalized
divergences Agarwal et al. 2024, arXiv 2306.13649): the student learns at each token of a row's answer what another
model expects there, which `edgetune data teach` has written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data.lengths import Lengths, lengths_of
from ..data.packing import Batch, Example, example_key
from ..data.teacher_file import INDEXED, TeacherFile, read_header, template_digest, tokenizer_digest
from ..errors import DataError, MismatchError, UsageError
from ..options import option
from .base import Signal, register
from .divergence import Divergent

if TYPE_CHECKING:
    from ..formats.gguf import Gguf

AGAIN = "write another with edgetune data teach, for these rows and with these options"


@register
@dataclass(frozen=True)
class Distill(Divergent):
    """L = (1/N) sum_t w_t ((1 - c) tau^2 D(q_t, p_t) - c log p_t) with the rows' weights w, N = sum_t |w_t|, and c the
    label share. q and p are softmax(z / tau) of the teacher and the student, over the k tokens of the file and all
    others as one; D is KL(q || p) (forward), KL(p || q) (reverse), or generalized Jensen-Shannon (jsd). The teacher's
    file says k and the temperature tau. p_t of the label is at temperature 1.
    """

    name: ClassVar[str] = "distill"
    needs_logp: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    needs_files: ClassVar[bool] = True
    source: ClassVar[str] = "taught"
    defaults: ClassVar[Mapping[str, Any]] = {"lr": 1e-3}
    teacher: str = option("", "The file of the teacher, which edgetune data teach wrote.", local=True)
    label_share: float = option(0.0, "The share of the loss that is the cross-entropy of the rows' own answers.",
                                low=0.0, high=1.0, share=True)

    @property
    def needs_top(self) -> int:  # type: ignore[override]
        return read_header(self._file).top

    @property
    def _file(self) -> str:
        if not self.teacher:
            raise UsageError("the method distill needs a teacher's file",
                             "write one with edgetune data teach, and name it with --teacher")
        return self.teacher

    def check_model(self, gguf: Gguf) -> None:
        """Raises MismatchError for a model with another tokenizer or chat template than the teacher's."""
        header = read_header(self._file)
        for name, was, now in (("tokenizer", header.tokenizer, tokenizer_digest(gguf)),
                               ("chat template", header.template, template_digest(gguf))):
            if was != now:
                raise MismatchError(f"the teacher of {self.teacher} has another {name} than {gguf.path.name}",
                                    "take a teacher of the same family, or learn its text: edgetune data answers")

    def prepared(self, examples: Sequence[Example]) -> list[Example]:
        file = TeacherFile(self._file)
        missing = file.missing([example_key(example) for example in examples])
        file.close()
        if missing:
            raise DataError(f"{missing} of {len(examples)} rows are not in {self.teacher} as this training reads them",
                            AGAIN)
        return [*examples]

    def lengths(self, *parts: Sequence[Example], max_length: int, share: bool) -> Lengths:  # noqa: ARG002
        return lengths_of(*parts, share=share).with_known(read_header(self._file).examples * INDEXED)

    def count(self, examples: Sequence[Example]) -> float:
        return sum(float(np.abs(example.weights[1:]).sum(dtype=np.float64)) for example in examples)

    def weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        assert batch.choices_reference is not None
        w = batch.supervised_weights.astype(np.float64)
        each, slopes, same = self.distance.learned(batch.choices_reference, logp[:, 1:])
        scale = (1 - self.label_share) * read_header(self._file).temperature ** 2
        a = np.zeros(logp.shape, np.float32)
        a[:, 0] = self.label_share * w
        a[:, 1:] = scale * w[:, None] * slopes
        labels = -float(w @ logp[:, 0].astype(np.float64))
        loss = scale * float(w @ each) + self.label_share * labels
        n = float(np.abs(w).sum())
        return Signal(a, loss, {"divergence": (float(np.abs(w) @ each), n), "label_loss": (labels, n),
                                "teacher_agreement": (float(np.abs(w) @ same), n)})

    def check(self) -> Distill:
        super().check()
        return replace(self, teacher=str(Path(self.teacher).absolute())) if self.teacher else self
