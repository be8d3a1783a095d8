"""Whether a new adapter may take over, from what was measured of it and of the one in service.

Rows are compared in pairs, so that hard and easy ones count the same: a row is won where the new adapter does better,
lost where it does worse, and a sign test says whether that is chance. The new adapter is refused where

- it is found worse: in rows that are right, in how far answers are right, in the loss of rows, in answers that end, in
  answers that are JSON. Rows that earlier lessons established are tested alone too: a lesson of wrong answers holds out
  wrong ones as well, which would speak for what was learned from it;
- nothing is right, neither before nor after, where answers can be compared;
- nothing speaks for it: answers are not right further than before on the whole, nor is the loss lower; if the lesson
  is unlike those before, the same holds for the rows of earlier lessons alone. Rows without an answer to compare are
  judged by what answers to them earn, whose mean must be higher than before;
- it unlearned other things: the perplexity of a text that has nothing to do with the rows, the canary, is higher than
  the base's by more than a limit, or what is expected there is further from what the base expects (KL) than another;
  or by more than SECOND times either where clearly more answers are right than the base's, or surely right further.
  All is measured from the base, so that it does not matter which adapter happened to serve.

The significance that is required depends on the lesson. If its rows surprise the old adapter no more than earlier rows,
neither of which it was trained on, they are more of the same, and a slip is forgiven. Rows that surprise it are either
news or wrong. Where they ask what earlier ones do not, they are news: earlier rows need not become better by them, and
what makes them worse is learned once more with later rows. Else they contradict earlier rows, and the first sign that
these get worse is enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ...evaluation.acceptance import Paired
from ..options import Limits
from .exam import Score

if TYPE_CHECKING:  # which needs llama.cpp, and a process that trains does not
    from ...evaluation.canary import Drift

ALPHA = 0.1  # level of significance: a difference that chance makes less often counts
# the level for what is worse after a lesson like those before, and unlike them
ALPHA_LIKE_BEFORE = 0.02
ALPHA_UNLIKE_BEFORE = 0.25
# a lesson is like those before, or unlike them, if rows as surprising come from their source more, or less often
LIKE_BEFORE = 0.1
UNLIKE_BEFORE = 0.01
SURE = 0.01  # level at which right answers, or a lower loss, make up for what is worse elsewhere
MOST = 0.5  # of the answers must end, and be JSON, whatever became better
SECOND = 6  # times its limits the canary may be from the base where clearly more answers are right
NO_LIMITS = Limits()
# the sign of a difference that is better
BETTER = {"right": 1, "reach": 1, "loss": -1, "ended": 1, "parsed": 1, "reward": 1}


@dataclass(frozen=True)
class Findings:
    """What was measured. old, new: each row's Score under what serves and under the new adapter. fresh: whether a row
    is of the job that is judged. serving: whether an adapter is in service, else `old` is of the base. canary: how
    far the new adapter is from the base there; None: not asked. base: each row's Score under the base, where it is
    known. corrected: Scores, under the new adapter, of corrections that it learned. rounds: of the first rows, those
    that are not fresh, the job of each. strangeness: probability that questions of the earlier kind are as unlike them
    as the fresh ones; None: there are too few.
    """

    old: Sequence[Score]
    new: Sequence[Score]
    fresh: Sequence[bool]
    serving: bool = False
    canary: Drift | None = None
    base: Sequence[Score] | None = None
    corrected: Sequence[Score] = ()
    rounds: Sequence[str] = ()
    strangeness: float | None = None

    @property
    def is_news(self) -> bool:
        """Whether fresh rows ask what earlier ones do not."""
        return self.strangeness is not None and self.strangeness < UNLIKE_BEFORE

    @property
    def who(self) -> str:
        """What serves, for a sentence."""
        return "the active adapter" if self.serving else "the base model"

    @property
    def rightly(self) -> str:
        """What a right row is, for a sentence."""
        pairs = sum(score.pair for score in self.new)
        if pairs == len(self.new):
            return "told apart rightly"
        return "answered exactly, or told apart rightly" if pairs else "answered exactly"


@dataclass(frozen=True)
class Verdict:
    """passed, and the reason in one sentence. waits: it did not pass, but nothing speaks against its rows, which are
    learned again together with the next ones. old, new: {rows, answered, right, loss, exact, reach, ended, parsed,
    reward}, counts, and means over the rows for which each was measured. canary: {base, new, rise, limit, kl, max_kl},
    the first two perplexities; None: not asked. corrected: {rows, kept}, of corrections that were learned; None: there
    are none.

    rounds: of each earlier lesson whose questions were asked, {job, rows, right, before}, the oldest first; remembered:
    the same in a sentence, "": there are none.

    wins, losses: rows right under one adapter alone (where no row differs: rows with a lower loss, and a higher);
    p: probability of that number of wins or fewer without a difference. surprise: probability that rows of this lesson
    surprise the old adapter as much as they do, or more, if they are like earlier ones; None: there are no rows of one
    kind. strangeness: the same of their questions, by how unlike earlier ones they are. tests: by rows (all, earlier)
    and measure, {wins, losses, p}. scores, base_scores: by digest, each row's Score under the new adapter and, where
    known, the base.
    """

    passed: bool
    reason: str
    old: dict[str, Any]
    new: dict[str, Any]
    wins: int
    losses: int
    p: float
    surprise: float | None
    strangeness: float | None
    scores: dict[str, Any] = field(default_factory=dict)
    waits: bool = False
    canary: dict[str, Any] | None = None
    corrected: dict[str, Any] | None = None
    tests: dict[str, Any] = field(default_factory=dict)
    base_scores: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    remembered: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def without_scores(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict as JSON without what it says of each row."""
    return {name: value for name, value in verdict.items() if name not in ("scores", "base_scores")}


def needs_base(canary: Drift | None, limits: Limits) -> bool:
    """Whether the base's answers decide, because the canary is beyond a limit, and not beyond SECOND times any."""
    return bool(_beyond(canary, limits)) and not _beyond(canary, limits, SECOND)


def decide(found: Findings, limits: Limits = NO_LIMITS) -> Verdict:
    """The verdict. limits: on the canary."""
    earlier = [i for i, is_fresh in enumerate(found.fresh) if not is_fresh]
    everything = _compare(found.old, found.new, range(len(found.old)))
    established = _compare(found.old, found.new, earlier)
    decisive = everything[next((name for name in ("right", "reward") if everything[name].differ), "loss")]
    surprise = _surprise(found)
    alpha = _alpha(surprise, found.is_news)
    unsound = _unsound(found)
    worse = unsound or _first_worse(found, everything, established, alpha)
    nothing_right = _nothing_right(found)
    is_like = alpha == ALPHA_LIKE_BEFORE
    useless = _useless(found, everything, {} if is_like or found.is_news else established)
    reason = worse or nothing_right or useless or _unlearned(found, limits)
    kept = sum(score.right is True for score in found.corrected)
    asked = sum(score.right is not None for score in found.corrected)
    rounds = _rounds(found)
    return Verdict(
        not reason, reason or _praise(found, everything, kept, asked), _summary(found.old), _summary(found.new),
        decisive.wins, decisive.losses, decisive.p, surprise, found.strangeness,
        waits=bool(reason) and not unsound and ((not worse and (bool(nothing_right) or not useless or is_like))
                                                or (found.is_news and bool(worse))),
        canary=_canary(found.canary, limits), corrected={"rows": asked, "kept": kept} if found.corrected else None,
        tests={"all": _numbers(everything), "earlier": _numbers(established)},
        rounds=rounds, remembered=_remembered(rounds))


# ---- counting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """Of rows measured under both: how many, wins and losses of the new one, and its sum and the old one's."""

    rows: int
    wins: int
    losses: int
    before: float
    after: float

    @property
    def differ(self) -> bool:
        return self.wins + self.losses > 0

    @property
    def p(self) -> float:
        """Probability of at most as many wins without a difference."""
        return Paired(self.wins, self.losses).p_worse

    @property
    def p_better(self) -> float:
        """Probability of at least as many wins without a difference."""
        return Paired(self.wins, self.losses).p_better


Counts = Mapping[str, Count]  # by measure


def _compare(old: Sequence[Score], new: Sequence[Score], rows: Sequence[int]) -> Counts:
    counts = {}
    for name, better in BETTER.items():
        both = [(getattr(old[i], name), getattr(new[i], name)) for i in rows]
        both = [(before, after) for before, after in both if None not in (before, after)]
        signs = [(after > before) - (after < before) for before, after in both]
        counts[name] = Count(len(both), signs.count(better), signs.count(-better), sum(before for before, _ in both),
                             sum(after for _, after in both))
    return counts


def rank_sum(values: Sequence[float], others: Sequence[float]) -> float:
    """Probability that the values exceed the others as often as they do, or more often, if all have one distribution.

    Mann and Whitney (1947), by the normal approximation with correction for continuity.
    """
    n = len(values)
    m = len(others)
    exceeds = sum((a > b) + (a == b) / 2 for a in values for b in others)
    deviation = math.sqrt(n * m * (n + m + 1) / 12)
    return 0.5 * math.erfc((exceeds - n * m / 2 - 0.5) / deviation / math.sqrt(2))


def _surprise(found: Findings) -> float | None:
    """The loss of an answer and that of a pair do not compare: that of answers decides, where both sides have some."""
    for of_pairs in (False, True):
        fresh: list[float] = []
        earlier: list[float] = []
        for score, is_fresh in zip(found.old, found.fresh, strict=True):
            if score.loss is not None and score.pair is of_pairs:
                (fresh if is_fresh else earlier).append(score.loss)
        if fresh and earlier:
            return rank_sum(fresh, earlier)
    return None


def _alpha(surprise: float | None, is_news: bool) -> float:
    if surprise is not None and surprise > LIKE_BEFORE:
        return ALPHA_LIKE_BEFORE
    if surprise is not None and surprise < UNLIKE_BEFORE and not is_news:
        return ALPHA_UNLIKE_BEFORE
    return ALPHA


def _comparable(found: Findings) -> int:
    """Rows whose answer can be the expected one."""
    return sum(score.right is not None and not score.prose for score in found.new)


@dataclass(frozen=True)
class Beyond:
    """A measure of the canary that is beyond its limit. what: by how much, for a sentence; allowed: the limit, and
    `more`: SECOND times that, likewise.
    """

    what: str
    allowed: str
    more: str


def _beyond(canary: Drift | None, limits: Limits, times: float = 1) -> list[Beyond]:
    """What is beyond `times` its limit."""
    found = []
    if canary is not None and limits.rise is not None and canary.rise > times * limits.rise:
        found.append(Beyond(f"unrelated text surprises it {100 * canary.rise:.1f} % more than the base model",
                            f"{100 * limits.rise:g} %", f"{100 * SECOND * limits.rise:g} %"))
    if canary is not None and limits.kl is not None and canary.kl > times * limits.kl:
        found.append(Beyond(f"what it expects of unrelated text is {canary.kl:.2g} nats a token from the base model "
                            "(KL)", f"{limits.kl:g}", f"{SECOND * limits.kl:g}"))
    return found


# ---- objections: "" or a sentence ------------------------------------------------------------------------------------


def _unsound(found: Findings) -> str:
    measured = [score.loss for score in found.new if score.loss is not None]
    canary = [found.canary.rise, found.canary.kl] if found.canary else []
    sound = all(map(math.isfinite, [*measured, *canary]))
    return "" if sound else "its losses are no numbers"


def _first_worse(found: Findings, everything: Counts, established: Counts, alpha: float) -> str:
    new = _summary(found.new)
    surprising = ", after corrections that surprise it though they ask the same" if alpha == ALPHA_UNLIKE_BEFORE else ""
    for compared, which in ((established, " of earlier lessons"), (everything, "")):
        for name, count in compared.items():
            if count.p < alpha and not _outweighed(name, compared, new):
                return _worse(name, count, found, which) + surprising
    return ""


def _worse(name: str, count: Count, found: Findings, which: str) -> str:
    who = found.who
    examples = f"of {count.rows} validation examples{which}"
    return {
        "right": f"{count.after} {examples} are {found.rightly}, {count.before} by {who}",
        "reach": f"its answers go wrong sooner than those of {who} on {count.losses} {examples}",
        "loss": f"less sure than {who} on {count.losses} {examples}",
        "ended": f"{count.losses} {examples} have answers that no longer end",
        "parsed": f"{count.losses} {examples} have answers that are no longer JSON",
        "reward": f"its answers earn less than those of {who} on {count.losses} {examples}",
    }[name]


def _outweighed(name: str, compared: Counts, new: Mapping[str, Any]) -> bool:
    """The loss may rise if significantly more answers are right: an adapter that knows more is surer of its mistakes
    too. A few more do not suffice, because a poisoned lesson learns the good rows again as well.

    Answers may be right less often if the loss is significantly lower and they are not significantly worse: the old
    adapter was chosen for its answers to these same rows, partly by luck. Some answers, not most, may not end, or not
    be JSON, if other rows became right or likelier, as in the first lessons.
    """
    right = compared["right"].p_better
    likelier = compared["loss"].p_better
    if name in ("ended", "parsed"):
        return min(right, likelier) < ALPHA and bool(new[name] > MOST)
    return right < SURE or (name == "right" and likelier < SURE <= compared[name].p)


def _nothing_right(found: Findings) -> str:
    """Where the answers of most rows can be compared; others are judged by their loss."""
    count = _comparable(found)
    if 2 * count <= len(found.new) or any(score.right for score in (*found.old, *found.new)):
        return ""
    return f"0 of {count} validation examples are {found.rightly}, as before"


def _useless(found: Findings, everything: Counts, established: Counts) -> str:
    """established: of earlier rows, where these must not have become worse alone; else empty."""
    reward = everything["reward"]
    if reward.rows and reward.after <= reward.before:
        return f"{_mean_rewards(reward, found.who)}: no higher"
    for compared, which in ((established, " of earlier lessons"), (everything, "")):
        if compared and not (compared["reach"].wins > compared["reach"].losses
                             or compared["loss"].wins >= compared["loss"].losses):
            loss = compared["loss"]
            return (f"no more right than {found.who}, and less sure on {loss.losses} of {loss.rows} validation "
                    f"examples{which}")
    return ""


def _unlearned(found: Findings, limits: Limits) -> str:
    if not (beyond := _beyond(found.canary, limits)):
        return ""
    far = _beyond(found.canary, limits, SECOND)
    base = found.base if found.serving else found.old
    if not far and base is not None:
        compared = _compare(base, found.new, range(len(base)))
        more_right = min(compared["right"].p_better, compared["reward"].p_better) < ALPHA
        if more_right or compared["reach"].p_better < SURE:
            return ""
        return (f"it unlearned other things: {beyond[0].what}, and it does not answer clearly more validation examples "
                f"than that; {beyond[0].allowed} are allowed")
    worst = (far or beyond)[0]
    return (f"it unlearned other things: {worst.what}; {worst.allowed} are allowed, {worst.more} where clearly more "
            "answers are right")


# ---- what is told ----------------------------------------------------------------------------------------------------


def _praise(found: Findings, compared: Counts, kept: int, asked: int) -> str:
    right = compared["right"]
    loss = compared["loss"]
    if right.before or right.after:
        praise = f"{right.after} of {right.rows} validation examples are {found.rightly}, {right.before} before"
    elif compared["reward"].rows:
        praise = _mean_rewards(compared["reward"], found.who)
    elif loss.wins:
        praise = f"more sure than {found.who} on {loss.wins} of {loss.rows} validation examples"
    else:
        praise = f"not worse than {found.who} on {len(found.new)} validation examples"
    return f"{kept} of {asked} corrected answers kept; {praise}" if asked else praise


def _mean_rewards(count: Count, who: str) -> str:
    after = count.after / count.rows
    before = count.before / count.rows
    return f"the answers to {count.rows} validation examples earn {after:.3f} on average, {before:.3f} by {who}"


def _rounds(found: Findings) -> list[dict[str, Any]]:
    """How many of the questions of each earlier lesson are right, by the new adapter and before."""
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
    which = "the earlier lesson" if len(rounds) == 1 else f"{len(rounds)} earlier lessons"
    return f"{right} of {rows} questions of {which} are answered rightly, {before} before"


def _numbers(compared: Counts) -> dict[str, Any]:
    return {name: {"wins": count.wins, "losses": count.losses, "p": count.p} for name, count in compared.items()}


def _canary(canary: Drift | None, limits: Limits) -> dict[str, Any] | None:
    if canary is None:
        return None
    return {"base": canary.perplexity, "new": canary.perplexity * (1 + canary.rise), "rise": canary.rise,
            "limit": limits.rise, "kl": canary.kl, "max_kl": limits.kl}


def _summary(scores: Sequence[Score]) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        values = [getattr(score, name) for score in scores if getattr(score, name) is not None]
        return sum(values) / len(values) if values else None

    answered = [score.right for score in scores if score.right is not None]
    return {"rows": len(scores), "answered": len(answered), "right": sum(answered), "loss": mean("loss"),
            "exact": mean("right"), "reach": mean("reach"), "ended": mean("ended"), "parsed": mean("parsed"),
            "reward": mean("reward")}
