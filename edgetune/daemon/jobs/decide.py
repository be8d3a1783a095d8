"""The decision whether a new adapter becomes the active one: three rules, one level of significance.

Both adapters answer the same questions, none of which was learned. Those that were drawn from all that people asked
decide, if there are LEAST_DRAWN; otherwise the held-out rows that people gave do (evaluation/acceptance.py says what
either promises). An answer that nobody rated counts as right. The new adapter becomes active if

1. it is not worse on the questions of earlier jobs: p of its losses there is above ALPHA; nor on any one typed question
   of these and of those that were drawn, above ALPHA divided by their number: else right answers to others outvoted it;
2. it answers more questions right: p is at most what this test may spend of ALPHA, so that an adapter that is no better
   is ever published before a better one with a probability below ALPHA;
3. unrelated text stays within the limits: its perplexity, and the predictions for it, stay near the base's.

An adapter from outside that need not be better (`required`: NOT_WORSE) is refused by the first rule, on the questions
of all jobs, and by the third one.

All else that was measured is a number in the verdict. If only the second or the third rule refuses the adapter, nothing
speaks against its rows: they are learned again together with the next ones, and their held-out questions count as new
again. So evidence adds up until it suffices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ...data.decisions import read_key
from ...evaluation.acceptance import ALPHA, Decision, Given, Paired, Population, Traffic, Value, at_most, worth
from ...evaluation.acceptance import decide as compare
from ..options import Limits
from .exam import BETTER, NOT_WORSE, RowScore

if TYPE_CHECKING:  # which needs llama.cpp, and a process that trains does not
    from ...evaluation.canary import Drift

LEAST_DRAWN = 4  # questions that were drawn from all that were asked; fewer cannot show that an adapter is better
NO_LIMITS = Limits()
NO_ROWS = "no held-out question was asked; unrelated text is within the limits"
SCORES = ("scores", "base_scores")  # of each row, in a verdict; the latter in verdicts of edgetune 0.1.0


@dataclass(frozen=True)
class Findings:
    """Measurements of both adapters. old, new: each row's RowScore under the active adapter, or the base, and under the
    new one. rounds: the jobs that the first rows are from; the others are of the job that is evaluated. serving:
    whether an adapter is active. canary: how far the new adapter is from the base on unrelated text; None: not
    measured. corrected: Scores, by the new adapter, of those it learned. tests_before: since the last publication.
    required: as of Exam. drawn_old, drawn_new: Scores of the questions that were drawn from all that were asked.
    unrated: how many of these nobody rated. population: how the other rows were chosen.
    """

    old: Sequence[RowScore]
    new: Sequence[RowScore]
    rounds: Sequence[str] = ()
    serving: bool = False
    canary: Drift | None = None
    corrected: Sequence[RowScore] = ()
    tests_before: int = 0
    required: str = BETTER
    drawn_old: Sequence[RowScore] = ()
    drawn_new: Sequence[RowScore] = ()
    unrated: int = 0
    population: type[Population] = Given


@dataclass(frozen=True)
class GateVerdict:
    """The gate's decision: passed, and the reason in one sentence. waits: it did not pass, but nothing speaks against
    its rows, which are learned again together with the next ones. old, new: {rows, answered, right, loss, exact, reach,
    ended, parsed, reward}, counts, and means over the rows for which each was measured. wins, losses, p: of the test
    that decided whether it is better, or no worse; alpha: the limit of p; test: its number since the last publication;
    only tests of whether it is better count, if it could have passed with the rows on which the two differ.

    promises: what an adapter that passed is, in a sentence. drawn: {rows, unrated, changed}, of the questions that
    were drawn from all that were asked: changed are those unrated ones that the new adapter answers otherwise; None:
    they did not decide. tests: by rows (earlier, new, all, drawn) {wins, losses, ties, p_better, p_worse, likelier},
    the last of them with likelihood. canary: {base, new, rise, limit, kl, max_kl}, the first two perplexities; None:
    not measured. corrected: {rows, kept}, of corrections that were learned;
    None: there are none. rounds: {job, rows, right, before} of each earlier job whose questions were answered, the
    oldest first; remembered: a sentence of them, or "". scores: by digest, each row's by the new adapter.
    """

    passed: bool
    reason: str
    old: dict[str, Any]
    new: dict[str, Any]
    wins: int
    losses: int
    p: float
    alpha: float
    test: int
    waits: bool = False
    canary: dict[str, Any] | None = None
    corrected: dict[str, Any] | None = None
    tests: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    remembered: str = ""
    scores: dict[str, Any] = field(default_factory=dict)
    promises: str = ""
    drawn: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def without_scores(verdict: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in verdict.items() if name not in SCORES}


def decide(found: Findings, limits: Limits = NO_LIMITS) -> GateVerdict:
    """Returns the verdict. limits: on unrelated text."""
    rules = GateRules.of(found)
    measured = [score.loss for score in found.new if score.loss is not None]
    measured += [found.canary.rise, found.canary.kl] if found.canary else []
    unsound = "" if all(map(math.isfinite, measured)) else "its losses are not finite"
    against = unsound or rules.worse
    drawn = {"rows": len(found.drawn_new), "unrated": found.unrated,
             "changed": sum(score.unrated and score.right is False for score in found.drawn_new)}
    not_better = rules.not_better and rules.not_better + rules.unrated(drawn["changed"])
    reason = against or not_better or _unlearned(found.canary, limits)
    rounds = _rounds(found)
    drift = found.canary
    canary = None if drift is None else {
        "base": drift.perplexity, "new": drift.perplexity * (1 + drift.rise), "rise": drift.rise,
        "limit": limits.rise, "kl": drift.kl, "max_kl": limits.kl}
    counts = rules.counts
    return GateVerdict(
        not reason, reason or (f"{_answers(found)}; {rules.numbers}" if found.new or found.drawn_new else NO_ROWS),
        _summary(found.old), _summary(found.new), counts.wins, counts.losses, rules.p, rules.level, rules.test,
        waits=bool(reason) and not against and not rules.new.is_worse, canary=canary,
        corrected=_corrected(found.corrected), tests=rules.to_json(), rounds=rounds, remembered=_remembered(rounds),
        promises=rules.population.promises, drawn=drawn if rules.by_traffic else None)


# ---- better and worse ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GateRules:
    """The first two rules. earlier: on rows of earlier jobs; new: on those of the job that is evaluated; all: on both,
    and on drawn ones if the adapter need not be better; drawn: on questions drawn from all that were asked. typed: of
    several typed questions on the earlier and the drawn rows of each, by its key.
    """

    earlier: Decision
    new: Decision
    all: Decision
    drawn: Decision
    tests_before: int = 0
    required: str = BETTER
    given: type[Population] = Given
    typed: Mapping[str, Decision] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Findings) -> GateRules:
        count = len(found.rounds)
        earlier = values(found.old[:count], found.new[:count])
        new = values(found.old[count:], found.new[count:])
        drawn = values(found.drawn_old, found.drawn_new)
        every = earlier + new + (drawn if found.required == NOT_WORSE else [])
        of = found.population(found.tests_before)

        def decided(pairs: list[tuple[Value, Value]], population: Population = of) -> Decision:
            return compare([before for before, _ in pairs], [after for _, after in pairs], population)

        rows = [*zip(found.old[:count], found.new[:count], strict=True),
                *zip(found.drawn_old, found.drawn_new, strict=True)]
        keys = sorted({new.question for _, new in rows} - {""})
        typed = {key: decided(values(*zip(*((old, new) for old, new in rows if new.question == key), strict=True)))
                 for key in keys} if len(keys) > 1 else {}
        return cls(decided(earlier), decided(new), decided(every), decided(drawn, Traffic(found.tests_before)),
                   found.tests_before, found.required, found.population, typed)

    @property
    def by_traffic(self) -> bool:
        """Returns whether the questions that were drawn decide."""
        return self.required == BETTER and self.drawn.right.rows >= LEAST_DRAWN

    @property
    def population(self) -> type[Population]:
        return Traffic if self.by_traffic else self.given

    @property
    def counts(self) -> Paired:
        """Returns wins and losses of the test that decides: of drawn questions, else of new rows, or of all, whichever
        say more clearly that it is better.
        """
        if self.required == NOT_WORSE:
            return self.all.worse
        if self.by_traffic:
            return self.drawn.right
        return min(self.new.right, self.all.right, key=lambda counts: counts.p_better)

    @property
    def p(self) -> float:
        """The p of the test that decides; twice the smaller one, if two are tried (Bonferroni)."""
        if self.required == NOT_WORSE:
            return self.all.worse.p_worse
        return min(1.0, self.tried * self.counts.p_better)

    @property
    def tried(self) -> int:
        return 2 if not self.by_traffic and self.earlier.right.rows and self.new.right.rows else 1

    @property
    def could_pass(self) -> bool:
        """Returns whether the rows on which the adapters differ would suffice, if the new one won them all."""
        tests = [self.drawn.right] if self.by_traffic else [self.new.right, self.all.right]
        most = max(counts.wins + counts.losses for counts in tests)
        return self.tried * at_most(0, most) <= self.level

    @property
    def level(self) -> float:
        return ALPHA if self.required == NOT_WORSE else self.all.level

    @property
    def test(self) -> int:
        """Returns its number. A test that could not have been passed spends nothing, so it is not counted."""
        return self.tests_before + (self.required == BETTER and self.could_pass)

    @property
    def numbers(self) -> str:
        counts = self.counts
        limit = f"more than {ALPHA:g}" if self.required == NOT_WORSE else f"at most {self.level:.2g}"
        which = f" of {counts.rows} questions drawn from all that were asked" if self.by_traffic else ""
        return f"{counts.wins} better, {counts.losses} worse{which} (p {self.p:.2g}, {limit} required)"

    def unrated(self, changed: int) -> str:
        """Says how people could let it pass, if they rated nothing of some answers that it would change."""
        if not (changed and self.by_traffic and self.drawn.right.losses):
            return ""
        which = "1 of the worse ones is an answer" if changed == 1 else f"{changed} of the worse ones are answers"
        return (f"; {which} that nobody rated, so that the present one counts as right: edgetune feedback check asks "
                "you")

    @property
    def worse(self) -> str:
        if self.required == NOT_WORSE:
            return f"worse on held-out questions: {self.numbers}" if self.all.is_worse else ""
        if self.earlier.is_worse:
            return _worse_on("worse on questions of earlier jobs", self.earlier.worse, ALPHA)
        for key, decision in self.typed.items():
            if decision.worse.p_worse <= ALPHA / len(self.typed):
                question = read_key(key)
                name = question.instructions if question else key
                return _worse_on(f"worse on the question {name!r:.100}", decision.worse, ALPHA / len(self.typed))
        return ""

    @property
    def not_better(self) -> str:
        return f"not surely better: {self.numbers}" if self.required == BETTER and self.p > self.level else ""

    def to_json(self) -> dict[str, Any]:
        tests = {"earlier": self.earlier, "new": self.new, "all": self.all, "drawn": self.drawn}
        return {name: {**asdict(of.right), "p_better": of.right.p_better, "p_worse": of.right.p_worse,
                       "likelier": asdict(of.all)} for name, of in tests.items()}


def _worse_on(what: str, counts: Paired, level: float) -> str:
    return (f"{what}: {counts.losses} worse, {counts.wins} better (p {counts.p_worse:.2g}, more than "
            f"{level:.3g} required)")


def values(old: Sequence[RowScore], new: Sequence[RowScore]) -> list[tuple[Value, Value]]:
    """Returns the values of both answers to each row that was measured under both."""
    return [(before, after) for a, b in zip(old, new, strict=True)
            if (before := _worth(a, b)) is not None and (after := _worth(b, a)) is not None]


def _worth(score: RowScore, other: RowScore) -> Value | None:
    """The value of an answer: its reward, or whether it is right, and then how likely the right answer is. None:
    nothing was measured. A text has no answer that is right word for word, so its likelihood is its value.
    """
    if score.reward is not None:
        return score.reward, 0.0
    has_losses = score.loss is not None and other.loss is not None
    if score.right is None or score.prose or other.prose:
        return worth(0.0, score.loss)[::-1] if has_losses and score.loss is not None else None
    if score.loss is None or other.loss is None:
        return float(score.right), 0.0
    return worth(float(score.right), score.loss)


def _unlearned(canary: Drift | None, limits: Limits) -> str:
    """Names the limit on unrelated text that is exceeded; "": none is."""
    if canary is None:
        return ""
    if limits.rise is not None and canary.rise > limits.rise:
        return (f"it unlearned other things: unrelated text surprises it {100 * canary.rise:.1f} % more than the base "
                f"model, {100 * limits.rise:g} % are allowed")
    if limits.kl is not None and canary.kl > limits.kl:
        return (f"it unlearned other things: what it expects of unrelated text is {canary.kl:.2g} nats a token from "
                f"the base model (KL), {limits.kl:g} are allowed")
    return ""


# ---- numbers and sentences -------------------------------------------------------------------------------------------


def _answers(found: Findings) -> str:
    """Returns a sentence on changes of held-out answers, and on the number of corrections kept."""
    old, new = _summary(found.old), _summary(found.new)
    if not found.new:
        said = f"{len(found.drawn_new)} questions of people were asked again"
    elif old["right"] or new["right"]:
        right = "told apart rightly" if all(score.pair for score in found.new) else "answered exactly"
        said = f"{new['right']} of {new['answered']} validation examples are {right}, {old['right']} before"
    elif new["reward"] is not None and old["reward"] is not None:
        said = (f"answers to {new['rows']} validation examples score {new['reward']:.3f} on average, "
                f"{old['reward']:.3f} before")
    else:
        said = f"the right answers to {new['rows']} validation examples are likelier"
    if corrected := _corrected(found.corrected):
        return f"{corrected['kept']} of {corrected['rows']} corrected answers kept; {said}"
    return said


def _corrected(scores: Sequence[RowScore]) -> dict[str, int] | None:
    answered = [score.right for score in scores if score.right is not None]
    return {"rows": len(answered), "kept": sum(answered)} if scores else None


def _rounds(found: Findings) -> list[dict[str, Any]]:
    """Counts, for each earlier job, of questions that are right under the new adapter and were before."""
    rounds: dict[str, dict[str, Any]] = {}
    for job, old, new in zip(found.rounds, found.old, found.new, strict=False):
        if old.right is not None and new.right is not None:
            counts = rounds.setdefault(job, {"job": job, "rows": 0, "right": 0, "before": 0})
            counts["rows"] += 1
            counts["right"] += new.right
            counts["before"] += old.right
    return [*rounds.values()]


def _remembered(rounds: Sequence[Mapping[str, Any]]) -> str:
    if not rounds:
        return ""
    rows, right, before = (sum(counts[name] for counts in rounds) for name in ("rows", "right", "before"))
    which = "an earlier job" if len(rounds) == 1 else f"{len(rounds)} earlier jobs"
    return f"{right} of {rows} questions of {which} are right, {before} before"


def _summary(scores: Sequence[RowScore]) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        values = [getattr(score, name) for score in scores if getattr(score, name) is not None]
        return sum(values) / len(values) if values else None

    answered = [score.right for score in scores if score.right is not None]
    return {"rows": len(scores), "answered": len(answered), "right": sum(answered), "loss": mean("loss"),
            "exact": mean("right"), "reach": mean("reach"), "ended": mean("ended"), "parsed": mean("parsed"),
            "reward": mean("reward")}
