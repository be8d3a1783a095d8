"""The gate decides whether a round's adapter is published, by answers to held-out questions through llama.cpp.

The adapter is published if it answers significantly more of them better than worse, compared with the published one by
the exact sign test, and does no harm to unrelated text. An answer is better if it is right, has more of the right JSON,
or a higher reward. How likely the right answer is publishes nothing: a model that learns its own answers becomes surer
of them, and no better.

The error is bounded over all rounds (acceptance.py): the k-th test since the last publication may be wrong with a
probability of ALPHA / k (k + 1), for any questions and any adapter. So repeated tries do not help, and the same
questions may test two adapters: in the first round the one with the model's own answers, and the one of labelled rows.

If both pass, the one that answers more questions better is published. But ten questions can hardly rank two adapters,
and what a judge answers was tested on all labelled rows. So with a judge the labelled rows alone must be significantly
better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, ClassVar

from ....data.dataset import load_rows
from ....errors import DataError
from ....evaluation.acceptance import ALPHA, HeldOut, Paired, worth
from ....evaluation.acceptance import decide as compare
from ....evaluation.canary import Drift, drift
from ....evaluation.graders.agreement import parts_of
from ....evaluation.judge import same
from ....evaluation.served import served_loss
from ....formats.shape import read_shape
from ....serving.llama import LlamaModel
from ....serving.memory import CONTEXT, repack_within
from ....serving.own_engine import own_memory
from .answers import ModelAnswer, graded
from .options import TutorOptions
from .questions import TutorQuestion
from .results import RoundResult, list_of
from .setting import RoundSetting

RIGHT = 1.0  # the value of a right answer
ROUND, LABELS, PUBLISHED = "round", "labels", "published"  # the adapters that are measured


@dataclass(frozen=True)
class HeldAnswers:
    """The answers to the held-out questions with one adapter. values: the overlap with the right answer, 1 for a right
    one; without a right answer the grader's rewards. losses: nats a token of the right answers, 0 where there is none.
    rise, kl: the adapter's distance from the base, as in `Drift`.
    """

    adapter: str
    texts: Sequence[str]
    values: Sequence[float]
    rise: float = 0.0
    kl: float = 0.0
    losses: Sequence[float] = ()  # of results of edgetune 0.1.0 none

    @property
    def worth(self) -> list[tuple[float, float]]:
        """What is compared of each answer."""
        losses = self.losses or repeat(0.0)
        return [worth(value, 0.0 if value == RIGHT else loss) for value, loss in zip(self.values, losses, strict=False)]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def score(self) -> str:
        is_counted = all(value in (0, 1) for value in self.values)
        return f"{sum(self.values):g} of {len(self.values)} right" if is_counted else f"score {self.mean:.3f}"


@dataclass(frozen=True)
class GateDecision:
    """The decision on an adapter. passed: whether it may be published. wins, losses: questions that it answers better
    and worse than the published one; p: their p-value if it is no better; alpha: the limit of p.
    """

    adapter: str
    passed: bool
    reason: str
    wins: int
    losses: int
    p: float
    alpha: float


@dataclass(frozen=True)
class GateResult(RoundResult):
    """The result of the gate. chosen: the adapter to publish, ROUND or LABELS; "": none. keys: of the questions."""

    step: ClassVar[str] = "gate"
    chosen: str
    reason: str
    keys: Sequence[str]
    decisions: Sequence[GateDecision] = list_of(GateDecision)
    answers: Sequence[HeldAnswers] = list_of(HeldAnswers)

    @property
    def facts(self) -> dict[str, Any]:
        of = {one.adapter: one for one in self.answers}
        now = of[self.chosen or self.decisions[0].adapter]
        decisions = [asdict(one) for one in self.decisions]
        return {"passed": bool(self.chosen), "adapter": self.chosen, "reason": self.reason, "questions": len(self.keys),
                "held_out_before": of[PUBLISHED].mean, "held_out": now.mean, "rise": now.rise, "kl": now.kl,
                "decisions": decisions}


def gate(setting: RoundSetting, questions: Sequence[TutorQuestion], published: Path | None,
         candidates: Mapping[str, Path], keep: Sequence[str], tests_before: int) -> GateResult:
    """Decides on the candidates. candidates: by name, the round's first. published: the adapter, None: the base. keep:
    texts on which a candidate is to stay near the base. tests_before: the tests since the last publication.

    Raises EdgetuneError if memory has no room for llama.cpp.
    """
    found = measure(setting, questions, {PUBLISHED: published, **candidates}, keep)
    decisions = decide(found, [*candidates], setting.options, tests_before)
    chosen = choose(found, decisions, doubt=ALPHA if setting.judge else 1.0)
    return GateResult(chosen, explain(decisions, chosen), [question.key for question in questions], decisions,
                 [*found.values()])


def measure(setting: RoundSetting, questions: Sequence[TutorQuestion], adapters: Mapping[str, Path | None],
            keep: Sequence[str]) -> dict[str, HeldAnswers]:
    """The answers with each adapter (None: the base) by llama.cpp, as in serving."""
    gguf = setting.bundle.gguf
    prompts = [question.prompt_tokens(setting.tokenizer, setting.system) for question in questions]
    longest = max(map(len, prompts), default=0) + setting.options.max_tokens + 1
    context = min(read_shape(gguf).context, max(CONTEXT, longest))
    answers: dict[str, list[ModelAnswer]] = {}
    losses: dict[str, list[float]] = {}
    drifts: dict[str, Drift] = {}
    paths = [path for path in adapters.values() if path is not None]
    room = setting.config.memory_here() - own_memory(gguf, paths, context, threads=setting.config.threads)
    with LlamaModel(gguf, context=context, threads=setting.config.threads or None, small_batch=True,
                    repack=repack_within(gguf, context, room, "raise --memory")) as served:
        served.tokenizer.markup = setting.config.markup
        served.cache.before_decode = setting.look
        for name, adapter in adapters.items():
            if adapter is not None:
                served.load_adapter(adapter, name)
            served.use(name if adapter is not None else None)
            answers[name] = _answered(setting, served, prompts)
            losses[name] = [_loss(setting, served, question) for question in questions]
            drifts[name] = drift(served, name if adapter is not None else None, keep)
    return {name: HeldAnswers(name, [one.text for one in given], _values(setting, questions, given),
                              drifts[name].rise, drifts[name].kl, losses[name]) for name, given in answers.items()}


def _answered(setting: RoundSetting, served: LlamaModel, prompts: Sequence[Sequence[int]]) -> list[ModelAnswer]:
    limit = setting.options.max_tokens
    texts = dict(served.complete(prompts, limit))
    served.reset()
    counts = [len(served.tokenizer.encode(texts[i], continues=True)) for i in range(len(prompts))]
    return [ModelAnswer(texts[i].strip(), count, count < limit) for i, count in enumerate(counts)]


def _loss(setting: RoundSetting, served: LlamaModel, question: TutorQuestion) -> float:
    """Nats a token of the right answer; 0 if there is none, or none of it fits into the context."""
    if not question.reference:
        return 0.0
    try:
        row = load_rows([question.with_answer(question.reference)], served.tokenizer, system=setting.system,
                        max_length=served.context)
    except DataError:
        return 0.0
    return served_loss(served, row)[0]


def _values(setting: RoundSetting, questions: Sequence[TutorQuestion], answers: Sequence[ModelAnswer]) -> list[float]:
    """The values of answers. They are graded after llama.cpp's memory is free, because a grader may ask a model."""
    grades = graded(setting, questions, [[one] for one in answers])
    return [in_common(question.reference, one.text) if question.reference else grade[0].reward
            for question, one, grade in zip(questions, answers, grades, strict=True)]


def in_common(right: str, text: str) -> float:
    """The Dice coefficient (Dice 1945) of the values of two JSON texts; 1 or 0 for other texts."""
    if same(right, text):
        return RIGHT
    a, b = parts_of(right), parts_of(text)
    return 2 * len(a & b) / max(1, len(a) + len(b))


def count_tests(gates: Iterable[GateResult]) -> int:
    """The tests of gates, the newest last, since one of them published."""
    count = 0
    for gated in gates:
        count = 0 if gated.chosen else count + len(gated.decisions)
    return count


# ---- the decision, by the numbers ------------------------------------------------------------------------------------


def decide(found: Mapping[str, HeldAnswers], candidates: Sequence[str], options: TutorOptions,
           tests_before: int) -> list[GateDecision]:
    """The decision on each candidate in turn. tests_before: the tests since the last publication."""
    before = found[PUBLISHED]
    decisions = []
    for number, name in enumerate(candidates):
        compared = compare(before.worth, found[name].worth, HeldOut(tests_before + number))
        paired = compared.right
        objection = harm(found[name], before, options)
        passed = compared.is_better and not objection
        reason = objection or _reason(before, found[name], paired, compared.level)
        decisions.append(GateDecision(name, passed, reason, paired.wins, paired.losses, paired.p_better,
                                      compared.level))
    return decisions


def _reason(before: HeldAnswers, now: HeldAnswers, paired: Paired, alpha: float) -> str:
    if paired.p_better <= alpha:
        sure = "not by chance"
    elif 0.5 ** paired.rows > alpha:
        sure = f"{paired.rows} questions are too few to tell"
    else:
        sure = "perhaps by chance"
    return (f"{now.score}, {before.score} before; {paired.wins} held-out questions are answered better, "
            f"{paired.losses} worse, {sure} (p = {paired.p_better:.2g}, limit {alpha:.2g})")


def harm(now: HeldAnswers, before: HeldAnswers, options: TutorOptions) -> str:
    """The harm to unrelated text in words; "" if there is none. Harm that the published adapter does is allowed."""
    rise = max(options.canary_rise, before.rise)
    if not now.rise <= rise:  # also if it is NaN
        return f"the perplexity of unrelated text is {now.rise:.1%} above the base's, the limit is {rise:.1%}"
    kl = max(options.max_kl, before.kl)
    if not now.kl <= kl:
        return f"predictions on unrelated text are {now.kl:.3f} nats a token from the base's, the limit is {kl:.3g}"
    return ""


def choose(found: Mapping[str, HeldAnswers], decisions: Sequence[GateDecision], doubt: float = 1.0) -> str:
    """The best candidate that passed, the first of equals; "": none passed. doubt: p of the sign test from which on two
    of them count as equal: 1 if they must answer equally many better.
    """
    passed = [one.adapter for one in decisions if one.passed]
    best = passed[0] if passed else ""
    for name in passed[1:]:
        paired = Paired.of(found[best].worth, found[name].worth)
        if paired.wins > paired.losses and paired.p_better <= doubt:
            best = name
    return best


def explain(decisions: Sequence[GateDecision], chosen: str) -> str:
    reasons = {one.adapter: one.reason for one in decisions}
    if chosen == LABELS and ROUND in reasons:
        return (f"answers to the prompts do not help here ({reasons[ROUND]}); the labelled rows alone: "
                f"{reasons[LABELS]}")
    return reasons[chosen or decisions[0].adapter]
