"""Evaluation jobs of a base: the gate evaluates the base in the other side of the daemon's slot, with its adapter.

The present base with its active adapter, and the other one with the adapter that comes with it, answer the held-out
questions of this device. The verdict is kept with the job. Nothing becomes active: who asked switches the slot.

The bases are loaded one after the other. Their tokenizers may differ, so a loss of the new base is stated in nats a
token of the present one: the nats of the whole answer, or text, divided by the tokens that it has for the present base.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ....daemon.jobs import gate
from ....daemon.jobs.decide import Findings, decide
from ....daemon.jobs.exam import AskedAdapter, GateExam, RowScore
from ....daemon.jobs.llama_examiner import LlamaExaminer
from ....daemon.jobs.recipe import held_rows
from ....daemon.jobs.table import Job
from ....daemon.kinds.base import JobKind
from ....daemon.kinds.evaluation import EvaluationRequest, questions
from ....daemon.kinds.registry import register
from ....daemon.opening import least_memory
from ....errors import MismatchError, TooMuchError, UsageError, size_text
from ....evaluation.canary import MAX_EXPONENT, Drift
from ....formats.bundle import MODEL, open_bundle
from ....formats.gguf import Gguf, check_network, open_gguf
from ....formats.slot import SIDES
from ....serving.memory import CONTEXT, memory_needed
from ....training.sizing import as_begun
from ....training.throttle import AnswerPriority
from .slot import ADAPTER, refuse_encoder

if TYPE_CHECKING:
    from ....daemon.jobs.exam import Examiner
    from ....daemon.jobs.worker import Worker
    from ....daemon.service import Service

TASK = "base.json"  # in the folder of a job: {"side": of the slot, a folder, "required": of it}


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


@dataclass(frozen=True)
class BaseRequest(EvaluationRequest):
    """Options of an evaluation, of which only required and if_none count. base: the fingerprint of the new base."""

    base: str = ""
    what: ClassVar[str] = "a base"


@register
class BaseJob(JobKind):
    """Jobs that evaluate a base on request, and train nothing."""

    origin = "base"
    trains = False

    def leaves_adapter(self, run: Path) -> bool:  # noqa: ARG002
        return False

    def activates(self, job: Job) -> bool:  # noqa: ARG002
        return False

    def work(self, worker: Worker) -> dict[str, Any]:
        task = json.loads((worker.folder / TASK).read_text())
        side = Path(task["side"])
        brought = side / ADAPTER
        return judged_base(worker, side, brought if brought.is_dir() else None, task["required"])


def begin_base_evaluation(service: Service, request: BaseRequest) -> Job:
    """Begins a job that evaluates the base in the side of the slot that the daemon does not use.

    Raises UsageError if it serves no slot, if the base takes more memory than the daemon has, and if nothing
    can decide; MismatchError for another base than the request names, TooMuchError if memory has room when nobody
    is answered, and errors of open_gguf and of jobs.
    """
    request.check()
    if service.slot is None:
        raise UsageError("this daemon serves no slot, whose base could be replaced",
                         "make one with edgetune fleet slot, and start the daemon with it")
    [side] = (service.slot.folder(side) for side in SIDES if side != service.path.name)
    new = open_gguf(side / MODEL)
    check_network(new)
    if new.fingerprint != request.base:
        raise MismatchError(f"{side} holds the base {new.fingerprint:.19}, the request is about {request.base:.19}",
                            "look at the fleet's folder again")
    refuse_encoder(new.architecture, str(side))
    _require_memory(service, new)
    asked = questions(service, request)
    metadata = {"base": new.fingerprint, "required": request.required, "if_none": request.if_none}
    return asked.begin(BaseJob.origin, service, metadata, lambda beside: (beside / TASK).write_text(
        json.dumps({"side": str(side), "required": asked.required})))


def _require_memory(service: Service, new: Gguf) -> None:
    """Raises UsageError for a base that the daemon could not serve within its memory, or not evaluate now."""
    needed = least_memory(new, service.config, service.bare)
    if needed > service.budget:
        raise UsageError(f"the base needs {size_text(needed)} of memory, the daemon's budget is "
                         f"{size_text(service.budget)}", "start the daemon with a larger --memory, or roll out a "
                         "smaller base")
    room = service.room(has_begun=False)
    needed = memory_needed(new, CONTEXT, repack=False)
    if needed > room.streamed + room.later:
        raise UsageError(f"to evaluate the base next to the present one takes {size_text(needed)} of memory, "
                         f"{size_text(max(room.streamed, 0))} of the daemon's {size_text(service.budget)} are left",
                         "start the daemon with a larger --memory")
    if needed > room.streamed:
        raise TooMuchError("the base can be evaluated when nobody is answered", "look again later")
