"""The gate. The active adapter, or the base, and a new adapter answer the same rows as they are served. Then decide.py
says whether the new one becomes active.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ...errors import DataError
from ...formats.gguf import ENCODERS, Gguf
from ...formats.shape import read_shape
from ...serving.encoder_model import EncoderModel
from ...serving.llama import LlamaModel
from ...serving.memory import CONTEXT, may_repack
from ...serving.own_engine import own_memory
from ..options import Limits
from .decide import Findings, GateVerdict, decide
from .encoder_examiner import EncoderExaminer
from .exam import BETTER, AskedAdapter, Examiner, GateExam
from .llama_examiner import LlamaExaminer
from .recipe import check_judgeable

OnAsked = Callable[[int, int], None]


def evaluate(served: LlamaModel | Examiner, exam: GateExam, old: AskedAdapter, new: AskedAdapter,
             limits: Limits | None = None, on_asked: OnAsked | None = None) -> GateVerdict:
    """Decides whether `new` replaces `old`, which has no name where no adapter is active.

    served: the adapters' model, or an examiner that has it. limits: on unrelated text; None: there are none. on_asked:
    called with the number of rows answered until now, and of all. Raises DataError for a row that has no answer to
    compare, and without rows, unless the exam requires only that the new one is not worse.
    """
    check(exam)
    rows = exam.rows
    examiner = served if isinstance(served, Examiner) else LlamaExaminer(served, exam, on_asked)
    drawn = exam.drawn
    examiner.planned = (len(examiner.missing(old, [*rows, *drawn]))
                        + len(examiner.missing(new, [*rows, *drawn, *exam.corrected])) + 2 * len(exam.unrated))
    before = examiner.scores(old, rows)
    after = examiner.scores(new, rows)
    corrected = examiner.scores(new, exam.corrected)
    rated = (examiner.scores(old, drawn), examiner.scores(new, drawn))
    unrated = examiner.unrated(old.name, new.name)
    limits = limits or Limits()
    canary = examiner.drift(new.name) if limits != Limits() else None
    found = Findings(before, after, exam.rounds, old.name is not None, canary, corrected, exam.tests_before,
                     exam.required, [*rated[0], *unrated[0]], [*rated[1], *unrated[1]], len(unrated[0]),
                     exam.population)
    verdict = decide(found, limits)
    verdict.scores.update((key, asdict(new.scores[key])) for key in map(exam.key, [*rows, *drawn, *exam.corrected]))
    return verdict


def check(exam: GateExam) -> None:
    """Raises DataError as `evaluate` does."""
    if not exam.rows and not exam.drawn and not exam.unrated and exam.required == BETTER:
        raise DataError("there are no rows to evaluate", "hold some out")
    for row in [*exam.rows, *exam.drawn]:
        if not exam.is_rewarded(row):
            check_judgeable(row)


@contextmanager
def opened(gguf: Gguf, adapters: dict[str, Path], exam: GateExam, budget: int, threads: int,
           before: Callable[[], object], on_asked: OnAsked) -> Iterator[Examiner]:
    """An examiner of a model with adapters, by their names. budget: bytes that this process may use. before: called
    between pieces of work. Raises the errors of opening either.
    """
    if gguf.architecture in ENCODERS:
        encoder = EncoderModel(gguf, gguf.path.name, threads)
        for name, path in adapters.items():
            encoder.load_adapter(path, name)
        yield EncoderExaminer(encoder, exam, on_asked, before)
        return
    context = min(read_shape(gguf).context, max(CONTEXT, 2 * exam.max_length))
    left = budget - own_memory(gguf, adapters.values(), context, threads=threads)
    with LlamaModel(gguf, context=context, threads=threads or None, repack=may_repack(gguf, context, left),
                    small_batch=True) as served:
        served.cache.before_decode = before
        for name, path in adapters.items():
            served.load_adapter(path, name)
        yield LlamaExaminer(served, exam, on_asked)
