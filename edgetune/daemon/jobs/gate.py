"""The gate: whether a new adapter may take over from the one in service. Both answer rows that neither was trained on.

Rows are compared in pairs, so that hard and easy ones count the same: a row is won where the new adapter does better,
lost where it does worse, and a sign test says whether that is chance. The new adapter is refused where

- it is found worse: in rows that are right, in how far answers are right, in the loss of rows, in answers that end, in
  answers that are JSON. Rows that earlier rounds established are tested alone too: a round of wrong answers holds out
  wrong ones as well, which would speak for what was learned from it;
- nothing speaks for it: answers are not right further than before on the whole, nor is the loss lower; if the round
  is unlike those before, the same holds for the rows of earlier rounds alone;
- it unlearned other things: the perplexity of a text that has nothing to do with the rows, the canary, went up.

The significance that is required depends on the round. If its rows surprise the old adapter no more than earlier rows,
neither of which it was trained on, they are more of the same, and a slip is forgiven. Rows that surprise it are either
news or wrong. News does not harm earlier rows, so the first sign that these get worse is enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from typing import Any

from ...data.dataset import load_rows
from ...data.rows import Row
from ...errors import DataError
from ...evaluation.served import Answer, exact_match, served_loss
from ...evaluation.significance import sign_test
from ...persisted import from_json
from ...serving.llama import LlamaModel
from ..state.files import digest
from .recipe import check_judgeable

ALPHA = 0.1  # level of significance: a difference that chance makes less often counts
# the level for what is worse after a round like those before, and unlike them
ALPHA_LIKE_BEFORE = 0.02
ALPHA_UNLIKE_BEFORE = 0.25
# a round is like those before, or unlike them, if rows as surprising come from their source more, or less often
LIKE_BEFORE = 0.1
UNLIKE_BEFORE = 0.01
SURE = 0.01  # level at which right answers, or a lower loss, make up for what is worse elsewhere
MOST = 0.5  # of the answers must end, and be JSON, whatever became better
CANARY_RISE = 0.02  # of the canary's perplexity at most
WINDOW = 512  # tokens of the canary that are seen at once
NAMES = {"right": "rows that are right", "reach": "answers by how far they are right", "loss": "rows by their loss",
         "ended": "answers that end", "parsed": "answers that are JSON"}


@dataclass(frozen=True)
class Score:
    """One row under one adapter. loss: nats a token of the answer. reach: how much of the right answer it says before
    its first mistake, 0 to 1. None: not measured for this row.
    """

    loss: float | None
    right: bool | None = None
    reach: float | None = None
    ended: bool | None = None
    parsed: bool | None = None


@dataclass(frozen=True)
class Verdict:
    """passed, and the reason in one sentence. old, new: {rows, loss, exact, reach, ended, parsed, canary}, means over
    the rows for which each was measured, canary: its perplexity.

    wins, losses: rows right under one adapter alone (where no row differs: rows with a lower loss, and a higher);
    p: probability of that number of wins or fewer without a difference. surprise: probability that rows of this round
    surprise the old adapter as much as they do, or more, if they are like earlier ones; None: there are no rows of one
    kind. scores: by digest, each row's Score under the new adapter.
    """

    passed: bool
    reason: str
    old: dict[str, Any]
    new: dict[str, Any]
    wins: int
    losses: int
    p: float
    surprise: float | None
    scores: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# ---- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exam:
    """What adapters are asked. The first `established` rows are of earlier rounds, the others of the round that is
    judged. canary: a text. system, max_length: as in training.
    """

    rows: Sequence[Row]
    canary: str = ""
    established: int = 0
    system: str | None = None
    max_length: int = 512


def judge(served: LlamaModel, exam: Exam, old: str | None, new: str,
          known: Mapping[str, Mapping[str, Any]] | None = None) -> Verdict:
    """Ask both adapters, by their names in `served` (None: the base alone), and decide.

    known: `scores` of the old adapter's own verdict: rows that it was asked then are not asked again.
    Raises DataError without rows, and for one that has no answer to compare.
    """
    rows = exam.rows
    if not rows:
        raise DataError("there are no rows to judge by", "hold some out")
    for row in rows:
        check_judgeable(row)
    fresh = [number >= exam.established for number in range(len(rows))]
    digests = [digest(row) for row in rows]
    found = {d: from_json(Score, score, "the verdict on the adapter in service") for d, score in (known or {}).items()}
    missing = [i for i, d in enumerate(digests) if d not in found]
    served.use(old)
    before = perplexity(served, exam.canary)
    first = scores(served, [rows[i] for i in missing], exam)
    found |= zip((digests[i] for i in missing), first, strict=True)
    served.use(new)
    after = scores(served, rows, exam)
    verdict = decide([found[d] for d in digests], after, fresh, (before, perplexity(served, exam.canary)))
    verdict.scores.update((d, asdict(score)) for d, score in zip(digests, after, strict=True))
    return verdict


def scores(served: LlamaModel, rows: Sequence[Row], exam: Exam) -> list[Score]:
    """Of each row, with the adapter in use. Text, and a row longer than max_length or the context, is not answered."""
    options: dict[str, Any] = {"system": exam.system, "max_length": min(exam.max_length, served.context)}
    found = []
    answerable = []
    for i, row in enumerate(rows):
        try:
            data = load_rows([row], served.tokenizer, **options)
        except DataError:  # nothing of its answer is within max_length
            found.append(Score(None))
            continue
        if data.asking and not data.truncated:
            answerable.append(i)
        found.append(Score(served_loss(served, data)[0]))
    if answerable:
        data = load_rows([rows[i] for i in answerable], served.tokenizer, **options)
        answers = exact_match(served, data, system=exam.system)
        for i, answer in zip(answerable, answers, strict=True):
            found[i] = Score(found[i].loss, answer.correct, _reach(answer), answer.ended, answer.parsed)
    return found


def _reach(answer: Answer) -> float:
    expected = answer.expected.strip()
    given = answer.answer.strip()
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(expected, given, strict=False)))
    return 1.0 if answer.correct else same / max(len(expected), 1)


def perplexity(served: LlamaModel, text: str) -> float:
    """Of a text, with the adapter in use; 1 for an empty one."""
    if not text:
        return 1.0
    loss, _ = served_loss(served, load_rows([text], served.tokenizer, max_length=min(WINDOW, served.context)))
    return math.exp(min(loss, 700.0))


# ---- deciding --------------------------------------------------------------------------------------------------------


def rank_sum(values: Sequence[float], others: Sequence[float]) -> float:
    """Probability that the values exceed the others as often as they do, or more often, if all have one distribution.

    Mann and Whitney (1947), by the normal approximation with correction for continuity.
    """
    n = len(values)
    m = len(others)
    exceeds = sum((a > b) + (a == b) / 2 for a in values for b in others)
    deviation = math.sqrt(n * m * (n + m + 1) / 12)
    return 0.5 * math.erfc((exceeds - n * m / 2 - 0.5) / deviation / math.sqrt(2))


def decide(old: Sequence[Score], new: Sequence[Score], fresh: Sequence[bool], canary: tuple[float, float]) -> Verdict:
    """The verdict on rows that both were asked. fresh: whether a row is of the round that is judged. canary: perplexity
    under both.
    """
    earlier = [i for i, is_fresh in enumerate(fresh) if not is_fresh]
    everything = _compare(old, new, range(len(old)))
    wins, losses = everything["right" if any(everything["right"]) else "loss"]
    after = _summary(new, canary[1])
    established = _compare(old, new, earlier)
    surprise = _surprise(old, fresh)
    alpha = _alpha(surprise)
    objections = [_unsound(new, canary), _worse(established, after, alpha, " of earlier rounds"),
                  _worse(everything, after, alpha, "")]
    if alpha > ALPHA_LIKE_BEFORE:
        objections.append(_pointless(established, " on rows of earlier rounds"))
    objections += [_pointless(everything, ""), _rise(*canary)]
    reason = next((objection for objection in objections if objection), "")
    return Verdict(not reason, reason or _praise(everything), _summary(old, canary[0]), after, wins, losses,
                   sign_test(wins, losses), surprise)


def _surprise(old: Sequence[Score], fresh: Sequence[bool]) -> float | None:
    of_round = [score.loss for score, is_fresh in zip(old, fresh, strict=True) if is_fresh and score.loss is not None]
    earlier = [score.loss for score, is_fresh in zip(old, fresh, strict=True)
               if not is_fresh and score.loss is not None]
    return rank_sum(of_round, earlier) if of_round and earlier else None


def _alpha(surprise: float | None) -> float:
    if surprise is None or UNLIKE_BEFORE <= surprise <= LIKE_BEFORE:
        return ALPHA
    return ALPHA_UNLIKE_BEFORE if surprise < UNLIKE_BEFORE else ALPHA_LIKE_BEFORE


def _compare(old: Sequence[Score], new: Sequence[Score], rows: Sequence[int]) -> dict[str, tuple[int, int]]:
    """For each measure in NAMES, (wins, losses) of the new adapter on these rows."""
    def count(name: str, better: int) -> int:
        both = [(getattr(old[i], name), getattr(new[i], name)) for i in rows]
        signs = [(after > before) - (after < before) for before, after in both if None not in (before, after)]
        return signs.count(better)

    return {name: (count(name, up), count(name, -up)) for name, up in
            (("right", 1), ("reach", 1), ("loss", -1), ("ended", 1), ("parsed", 1))}


def _worse(compared: Mapping[str, tuple[int, int]], new: Mapping[str, Any], alpha: float, which: str) -> str:
    unlike = ", after a round unlike those before" if alpha == ALPHA_UNLIKE_BEFORE else ""
    for name, found in compared.items():
        p = sign_test(*found)
        if p < alpha and not _outweighed(name, p, compared, new):
            return (f"worse on {NAMES[name]}{which}: {found[0]} better, {found[1]} worse, by chance in {p:.2g} of "
                    f"all cases{unlike}")
    return ""


def _outweighed(name: str, p: float, compared: Mapping[str, tuple[int, int]], new: Mapping[str, Any]) -> bool:
    """The loss may rise if significantly more answers are right: an adapter that knows more is surer of its mistakes
    too. A few more do not suffice, because a poisoned round learns the good rows again as well.

    Answers may be right less often if the loss is significantly lower and they are not significantly worse: the old
    adapter was chosen for its answers to these same rows, partly by luck. Some answers, not most, may not end, or not
    be JSON, if other rows became right or likelier, as in the first rounds.
    """
    right = _chance_of_wins(*compared["right"])
    likelier = _chance_of_wins(*compared["loss"])
    if name in ("ended", "parsed"):
        return min(right, likelier) < ALPHA and bool(new[name] > MOST)
    return right < SURE or (name == "right" and likelier < SURE <= p)


def _chance_of_wins(wins: int, losses: int) -> float:
    """Probability of as many wins or more if there were no difference."""
    return sign_test(losses, wins)


def _pointless(compared: Mapping[str, tuple[int, int]], which: str) -> str:
    further, less_far = compared["reach"]
    lower, higher = compared["loss"]
    if further > less_far or lower >= higher:
        return ""
    return (f"nothing speaks for it{which}: {further} answers are right further than before, {less_far} less far; the "
            f"loss is lower on {lower} rows, higher on {higher}")


def _rise(before: float, after: float) -> str:
    rise = after / before - 1
    if rise <= CANARY_RISE:
        return ""
    return (f"it unlearned other things: the perplexity of the canary is {100 * rise:.1f} % up, from {before:.2f} to "
            f"{after:.2f}, at most {100 * CANARY_RISE:g} % are allowed")


def _unsound(new: Sequence[Score], canary: tuple[float, float]) -> str:
    sound = all(math.isfinite(score.loss) for score in new if score.loss is not None) and math.isfinite(canary[1])
    return "" if sound else "its losses are no numbers"


def _praise(compared: Mapping[str, tuple[int, int]]) -> str:
    wins, losses = compared["right"]
    lower, higher = compared["loss"]
    return (f"{wins} rows are right that were wrong, {losses} the other way round; the loss is lower on {lower} rows, "
            f"higher on {higher}")


def _summary(found: Sequence[Score], canary: float) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        values = [getattr(score, name) for score in found if getattr(score, name) is not None]
        return sum(values) / len(values) if values else None

    return {"rows": len(found), "loss": mean("loss"), "exact": mean("right"), "reach": mean("reach"),
            "ended": mean("ended"), "parsed": mean("parsed"), "canary": canary}
