"""The gate for another base: both bases, each with its adapter, answer the same held-out rows. Then decide.py decides.

They are loaded one after the other. Their tokenizers may differ, so a loss of the new base is stated in nats a token of
the present one: the nats of the whole answer, or text, divided by the tokens that it has for the present base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....daemon.jobs import gate
from ....daemon.jobs.decide import Findings, decide
from ....daemon.jobs.exam import AskedAdapter, GateExam, RowScore
from ....daemon.jobs.llama_examiner import LlamaExaminer
from ....daemon.jobs.recipe import held_rows
from ....evaluation.canary import MAX_EXPONENT, Drift
from ....formats.bundle import open_bundle
from ....formats.gguf import Gguf
from ....training.sizing import as_begun
from ....training.throttle import AnswerPriority

if TYPE_CHECKING:
    from ....daemon.jobs.exam import Examiner
    from ....daemon.jobs.worker import Worker


@dataclass(frozen=True)
class MeasuredBase:
    """One base with its adapter. scores: of the rows, in their order. tokens: of each right answer, 0: of one that is
    not read whole. drift: of the adapter from its base on unrelated text, None: not measured; text: its tokens.
    """

    scores: list[RowScore]
    tokens: list[int]
    drift: Drift | None
    text: int


def judged_base(worker: Worker, side: Path, adapter: Path | None, required: str) -> dict[str, Any]:
    """Returns the verdict on the base in this side of a slot, as JSON, against the present one. adapter: that comes
    with it. Raises errors of open_bundle, and of opening an adapter.
    """
    from ....daemon.jobs.worker import NEW
    rows, rounds = held_rows(worker.folder)
    exam = GateExam(rows, worker.canary, rounds, (), worker.config.instruction,
                as_begun(worker.config, adapter or worker.folder).row_limit, worker.rewarding(),
                worker.task["tests_before"], required)
    gate.check(exam)
    serving = worker.task["serving"]
    present = {worker.old.name: Path(serving["path"])} if worker.old.name else {}
    with _opened(worker, worker.bundle.gguf, present, exam, worker.room.resident) as examiner:
        old = measured(examiner, worker.old, exam)
    bundle = open_bundle(side)
    brought = {NEW: adapter} if adapter else {}
    with _opened(worker, bundle.gguf, brought, exam, worker.room.streamed) as examiner:
        new = measured(examiner, AskedAdapter(NEW if adapter else None), exam)
    found = Findings(old.scores, comparable(new, old), rounds, worker.old.name is not None, rise(new, old), (),
                     exam.tests_before, required)
    return {**decide(found, worker.limits).to_json(), "against": serving and serving["id"]}


def _opened(worker: Worker, base: Gguf, adapters: Mapping[str, Path], exam: GateExam,
            budget: int) -> AbstractContextManager[Examiner]:
    return gate.opened(base, dict(adapters), exam, budget, worker.config.threads,
                       AnswerPriority(worker.commands.is_busy),
                       lambda done, of: worker.emit({"event": "judging", "done": done, "of": of}))


def measured(examiner: Examiner, asked: AskedAdapter, exam: GateExam) -> MeasuredBase:
    """Lets a base with its adapter answer the rows of an exam."""
    assert isinstance(examiner, LlamaExaminer)  # a slot holds no encoder
    scores = examiner.scores(asked, exam.rows)
    tokens = [examiner.answer_tokens(asked.name, row) for row in exam.rows]
    text = len(examiner.served.tokenizer.encode(exam.canary)) if exam.canary else 0
    return MeasuredBase(scores, tokens, examiner.drift(asked.name), text)


def comparable(new: MeasuredBase, old: MeasuredBase) -> list[RowScore]:
    """Returns the new Scores with losses in nats a token of the present base; without one if the answers that were
    read differ.
    """
    found = []
    for score, ours, theirs in zip(new.scores, new.tokens, old.tokens, strict=True):
        if score.loss is None or score.pair:  # of a pair it is that of whole answers already
            found.append(score)
        else:
            found.append(replace(score, loss=score.loss * ours / theirs if ours and theirs else None))
    return found


def rise(new: MeasuredBase, old: MeasuredBase) -> Drift | None:
    """Returns how much more unrelated text surprises the new base with its adapter than the present base alone; kl is
    that of the adapter from its own base. None: it is not measured.
    """
    if not (new.drift and old.drift and old.text and old.drift.tokens and new.drift.tokens):
        return None
    before = math.log(old.drift.perplexity)
    after = (math.log(new.drift.perplexity) + math.log1p(new.drift.rise)) * new.text / old.text
    return Drift(math.expm1(min(after - before, MAX_EXPONENT)), new.drift.kl, old.drift.tokens, old.drift.perplexity)
