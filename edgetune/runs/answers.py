"""What a run did to answers: the held-out questions put to the model as it was, and with the new adapter.

llama.cpp answers, as it will when the adapter is served, once the trainer's memory is free again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.dataset import load_rows
from ..data.rows import Row
from ..errors import BudgetError, DataError, Interrupted, size_text
from ..evaluation.acceptance import ALPHA, Paired
from ..evaluation.encoders import grade_labels
from ..evaluation.served import GradedAnswer, exact_match, exact_share, parsed_share
from ..formats.gguf import ENCODERS, Gguf
from ..machine import device
from ..serving.classifier import Classifier
from ..serving.llama import LlamaModel
from ..serving.memory import bytes_to_read, context_of, repack_within
from ..serving.own_engine import own_memory
from ..training.config import TrainConfig
from ..training.plan import GROWTH

MOST = 64  # questions
SHOWN = 3  # of them, in run.json


@dataclass(frozen=True)
class Exam:
    """Who is asked what. start: the run's first adapter, None: only the base before. longest: tokens of a row."""

    base: Gguf
    adapter: Path
    start: Path | None
    rows: Sequence[Row]
    longest: int
    config: TrainConfig

    @property
    def is_of_labels(self) -> bool:
        """Whether an answer that is not exact is no good one, as of an encoder."""
        return self.base.architecture in ENCODERS


def compare(exam: Exam, begin: Callable[[int], object], should_stop: Callable[[], bool]) -> dict[str, Any]:
    """The "answers" of run.json: {rows, before, after, wins, losses, commonest, pairs}. before, after: shares of the
    rows; commonest: the number of rows that the same answer is right for. Where the run's rows have a schema, also
    {structured, structured_parsed}: the shares that are exact, and JSON, of the answers after that are held to it.

    begin: called with the number of questions. Raises EdgetuneError where the questions cannot be put, with the reason;
    Interrupted where should_stop returns True.
    """
    if exam.is_of_labels:
        return _labels(exam, begin)
    context = context_of(exam.base, exam.longest)
    adapters = [path for path in (exam.start, exam.adapter) if path]
    room = exam.config.memory_here() - own_memory(exam.base, adapters, context, threads=exam.config.threads)
    repack = repack_within(exam.base, context, room,
                           "edgetune eval compares them where there is more memory")

    def look() -> None:
        if should_stop():
            raise Interrupted("they were stopped")

    with LlamaModel(exam.base, context=context, threads=exam.config.threads or None, repack=repack,
                    small_batch=True) as served:
        served.tokenizer.markup = exam.config.markup
        served.tokenizer.thoughts = exam.config.thinking
        served.cache.before_decode = look
        if exam.start:
            served.load_adapter(exam.start, "before")
        served.load_adapter(exam.adapter, "after")
        rows = _answerable(exam, served)
        begin(len(rows))
        said = []
        for name in ("before" if exam.start else None, "after"):
            served.use(name)
            data = load_rows(rows, served.tokenizer, max_length=context, system=exam.config.instruction)
            said.append(exact_match(served, data, system=exam.config.instruction, shortens=True))
        if grammar := served.grammar_of("after"):
            held = exact_match(served, data, system=exam.config.instruction, grammar=grammar, free=said[-1])
            return summary(*said) | {"structured": exact_share(held), "structured_parsed": parsed_share(held)}
    return summary(*said)


def _labels(exam: Exam, begin: Callable[[int], object]) -> dict[str, Any]:
    """`compare` of an encoder, which has no answer before a head is trained."""
    rows = exam.rows[:MOST]
    adapters = [path for path in (exam.start, exam.adapter) if path]
    budget = exam.config.memory_here()
    needed = device.rss() + exam.base.data.nbytes + sum(map(bytes_to_read, adapters)) + GROWTH
    if needed > budget:
        raise BudgetError(f"answers need {size_text(needed)}, the budget is {size_text(budget)}",
                          "edgetune eval compares them where there is more memory", needed)
    begin(len(rows))
    with ExitStack() as opened:
        *before, after = [opened.enter_context(Classifier(exam.base, path, exam.config.threads)) for path in adapters]
        exam.base.release()
        for served in (*before, after):
            served.keep_within(budget, exam.longest)
        said = grade_labels(after, rows).answers
        was = grade_labels(before[0], rows).answers if before else [
            replace(answer, answer="", correct=False) for answer in said]
    return summary(was, said)


def summary(before: Sequence[GradedAnswer], after: Sequence[GradedAnswer]) -> dict[str, Any]:
    """Answers to the same questions; the pairs shown are those that changed, as far as there are any."""
    asked = list(zip(before, after, strict=True))
    changed = sorted(asked, key=lambda pair: pair[0].correct == pair[1].correct)
    return {"rows": len(asked), "before": exact_share(before), "after": exact_share(after),
            "wins": sum(b.correct and not a.correct for a, b in asked),
            "losses": sum(a.correct and not b.correct for a, b in asked),
            "commonest": max(Counter(answer.expected for answer in after).values()),
            "pairs": [{"prompt": a.question, "expected": a.expected, "before": a.answer.strip(),
                       "after": b.answer.strip(), "right": b.correct} for a, b in changed[:SHOWN]]}


def complete(verdict: dict[str, Any], answers: dict[str, Any], was: str = "before",
             of_labels: bool = False) -> dict[str, Any]:
    """The verdict by losses, completed by answers: worse where clearly fewer of them are right than before. Losses fall
    on the form of answers alone, so it did not learn for certain what one answer to all questions would do as well.
    was: with what the answers before were given. of_labels: an answer that is not exact is no good one.
    """
    rows = answers["rows"]
    before, after = (round(answers[when] * rows) for when in ("before", "after"))
    than = "fewer than the " if after < before else ""
    said = f"{after} of {rows} held-out rows are answered exactly, {than}{before} {was}"
    if after < before and Paired(answers["wins"], answers["losses"]).p_worse <= ALPHA:
        return {**verdict, "kind": "worse", "sentence": f"Worse than before, although the held-out loss fell: {said}; "
                "lower --lr or --epochs, and look at the rows with edgetune data check."}
    kind = verdict["kind"]
    sentence = verdict["sentence"]
    if of_labels and not after and kind in ("learned", "still falling", "overfitted"):
        return {**verdict, "kind": "unmeasured", "sentence": f"It learned nothing that can be seen, although the "
                f"held-out loss fell: {said}; give it more rows, or see with edgetune data check what it can learn."}
    if kind == "still falling" and after == rows:  # longer training would teach nothing that is measured
        kind = "learned"
        sentence = "Learned."
    if kind in ("learned", "overfitted") and 1 < answers["commonest"] >= after < rows:
        said += (f", and always the same answer would be right for {answers['commonest']}: see whether the rows' "
                 "answers fit their questions")
        if kind == "learned":
            kind = "unmeasured"
            sentence = "It may have learned no more than the form of answers."
    return {**verdict, "kind": kind, "sentence": f"{sentence} {said}."}


def _answerable(exam: Exam, served: LlamaModel) -> list[Row]:
    """The first MOST rows that have a question, and are not longer than what was trained."""
    found: list[Row] = []
    for row in exam.rows:
        try:
            data = load_rows([row], served.tokenizer, max_length=exam.longest, system=exam.config.instruction)
        except DataError:  # nothing of its answer is within that length
            continue
        if data.asking and not data.truncated:
            found.append(row)
        if len(found) == MOST:
            break
    if not found:
        raise DataError("no held-out row has a question and an answer", "give some that have")
    return found
