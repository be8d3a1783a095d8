"""The decision whether a new adapter becomes the active one: three rules, one level of significance.

Both adapters answer the same held-out questions, none of which was learned. A question is won by the adapter that
answers it right where the other does not. If both do or neither does, it is won by the one that finds the right answer
likelier. A sign test says whether wins and losses may be chance (evaluation/acceptance.py). The new adapter becomes
active if

1. it is not worse on the questions of earlier jobs: p of its losses there is above ALPHA;
2. it is better on the questions of this job, or on all of them: p is at most what acceptance.py lets this test spend of
   ALPHA, so that an adapter that is no better is ever published before a better one with a probability below ALPHA;
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

from ...evaluation.acceptance import Paired, alpha_of_test, worth
from ..options import Limits
from .exam import BETTER, NOT_WORSE, Score

if TYPE_CHECKING:  # which needs llama.cpp, and a process that trains does not
    from ...evaluation.canary import Drift

ALPHA = 0.125  # four wins of four questions suffice in the first test
NO_LIMITS = Limits()
NO_ROWS = "no held-out question was asked; unrelated text is within the limits"
SCORES = ("scores", "base_scores")  # of each row, in a verdict; the latter in verdicts of edgetune 0.1.0


@dataclass(frozen=True)
class Findings:
    """Measurements of both adapters. old, new: each row's Score under the active adapter, or the base, and under the
    new one. rounds: the jobs that the first rows are from; the others are of the job that is evaluated. serving:
    whether an adapter is active. canary: how far the new adapter is from the base on unrelated text; None: not
    measured. corrected: Scores, by the new adapter, of those it learned. tests_before: since the last publication.
    required: as of Exam.
    """

    old: Sequence[Score]
    new: Sequence[Score]
    rounds: Sequence[str] = ()
    serving: bool = False
    canary: Drift | None = None
    corrected: Sequence[Score] = ()
    tests_before: int = 0
    required: str = BETTER


@dataclass(frozen=True)
class Verdict:
    """The gate's decision: passed, and the reason in one sentence. waits: it did not pass, but nothing speaks against
    its rows, which are learned again together with the next ones. old, new: {rows, answered, right, loss, exact, reach,
    ended, parsed, reward}, counts, and means over the rows for which each was measured. wins, losses, p: of the test
    that decided whether it is better, or no worse; alpha: the limit of p; test: its number since the last publication;
    only tests of whether it is better count.

    tests: by rows (earlier, new, all) {wins, losses, ties, p_better, p_worse}. canary: {base, new, rise, limit, kl,
    max_kl}, the first two perplexities; None: not measured. corrected: {rows, kept}, of corrections that were learned;
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def without_scores(verdict: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in verdict.items() if name not in SCORES}


def decide(found: Findings, limits: Limits = NO_LIMITS) -> Verdict:
    """Returns the verdict. limits: on unrelated text."""
    count = len(found.rounds)
    rules = Rules(paired(found.old[:count], found.new[:count]), paired(found.old[count:], found.new[count:]),
                  found.tests_before, found.required)
    measured = [score.loss for score in found.new if score.loss is not None]
    measured += [found.canary.rise, found.canary.kl] if found.canary else []
    unsound = "" if all(map(math.isfinite, measured)) else "its losses are not finite"
    against = unsound or rules.worse
    reason = against or rules.not_better or _unlearned(found.canary, limits)
    rounds = _rounds(found)
    better = rules.better
    drift = found.canary
    canary = None if drift is None else {
        "base": drift.perplexity, "new": drift.perplexity * (1 + drift.rise), "rise": drift.rise,
        "limit": limits.rise, "kl": drift.kl, "max_kl": limits.kl}
    return Verdict(
        not reason, reason or (f"{_answers(found)}; {rules.numbers}" if found.new else NO_ROWS),
        _summary(found.old), _summary(found.new), better.wins, better.losses, rules.p, rules.alpha, rules.test,
        waits=bool(reason) and not against and rules.new.p_worse > ALPHA, canary=canary,
        corrected=_corrected(found.corrected), tests=rules.to_json(), rounds=rounds, remembered=_remembered(rounds))


# ---- better and worse ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    """The first two rules on counts of rows. earlier: rows of earlier jobs; new: of the job that is evaluated."""

    earlier: Paired
    new: Paired
    tests_before: int = 0
    required: str = BETTER

    @property
    def all(self) -> Paired:
        return self.new + self.earlier

    @property
    def better(self) -> Paired:
        """Returns the rows that say more clearly that it is better: new ones, or all."""
        if self.required == NOT_WORSE:
            return self.all
        return min(self.new, self.all, key=lambda counts: counts.p_better)

    @property
    def p(self) -> float:
        """Twice the smaller p of the two tests that `better` chooses from (Bonferroni), or the only one's. Earlier rows
        chose the active adapter, which makes it no easier to be better on them.
        """
        if self.required == NOT_WORSE:
            return self.all.p_worse
        return min(1.0, (2 if self.earlier.rows and self.new.rows else 1) * self.better.p_better)

    @property
    def alpha(self) -> float:
        return ALPHA if self.required == NOT_WORSE else alpha_of_test(ALPHA, self.tests_before)

    @property
    def test(self) -> int:
        return self.tests_before + (self.required == BETTER)

    @property
    def numbers(self) -> str:
        better = self.better
        limit = f"more than {ALPHA:g}" if self.required == NOT_WORSE else f"at most {self.alpha:.2g}"
        return f"{better.wins} better, {better.losses} worse (p {self.p:.2g}, {limit} required)"

    @property
    def worse(self) -> str:
        if self.required == NOT_WORSE:
            return f"worse on held-out questions: {self.numbers}" if self.p <= ALPHA else ""
        if self.earlier.p_worse > ALPHA:
            return ""
        return (f"worse on questions of earlier jobs: {self.earlier.losses} worse, {self.earlier.wins} better "
                f"(p {self.earlier.p_worse:.2g}, more than {ALPHA:g} required)")

    @property
    def not_better(self) -> str:
        return f"not surely better: {self.numbers}" if self.required == BETTER and self.p > self.alpha else ""

    def to_json(self) -> dict[str, Any]:
        counts = {"earlier": self.earlier, "new": self.new, "all": self.all}
        return {name: {**asdict(of), "p_better": of.p_better, "p_worse": of.p_worse} for name, of in counts.items()}


def paired(old: Sequence[Score], new: Sequence[Score]) -> Paired:
    """Returns wins and losses of the new adapter on the rows that were measured under both."""
    both = [(before, after) for a, b in zip(old, new, strict=True)
            if (before := _worth(a, b)) is not None and (after := _worth(b, a)) is not None]
    return Paired.of([before for before, _ in both], [after for _, after in both])


def _worth(score: Score, other: Score) -> tuple[float, float] | None:
    """The value of an answer, which orders two answers to one question: by the reward, or right before wrong and then
    by how likely the right answer is, where both have that. None: nothing was measured.
    """
    if score.reward is not None:
        return score.reward, 0.0
    if score.loss is None or other.loss is None:
        return None if score.right is None else (float(score.right), 0.0)
    return worth(float(score.right is True), score.loss)


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
    if old["right"] or new["right"]:
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


def _corrected(scores: Sequence[Score]) -> dict[str, int] | None:
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


def _summary(scores: Sequence[Score]) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        values = [getattr(score, name) for score in scores if getattr(score, name) is not None]
        return sum(values) / len(values) if values else None

    answered = [score.right for score in scores if score.right is not None]
    return {"rows": len(scores), "answered": len(answered), "right": sum(answered), "loss": mean("loss"),
            "exact": mean("right"), "reach": mean("reach"), "ended": mean("ended"), "parsed": mean("parsed"),
            "reward": mean("reward")}
