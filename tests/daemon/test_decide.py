"""edgetune.daemon.jobs.decide: ranks against counting, decisions on lessons made up, and promotions of the past."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations

import pytest

from edgetune.daemon.jobs.decide import Findings, Verdict, decide, needs_base, rank_sum, without_scores
from edgetune.daemon.jobs.exam import Score
from edgetune.daemon.options import Limits
from edgetune.evaluation.canary import Drift

LIMIT = Limits(0.05, 0.1)


def canary(rise: float, kl: float = 0.01) -> Drift:
    return Drift(rise, kl, 100, 20.0)


CANARY = canary(0.005)


def test_rank_sum_is_nearly_exact() -> None:
    """Against all ways that so many ranks can be divided."""
    for n, m in ((3, 4), (5, 6), (4, 10)):
        ranks = range(n + m)
        sums = [sum(chosen) for chosen in combinations(ranks, n)]
        for chosen in combinations(ranks, n):
            exact = sum(total >= sum(chosen) for total in sums) / len(sums)
            assert rank_sum(chosen, [rank for rank in ranks if rank not in chosen]) == pytest.approx(exact, abs=0.02)
    assert rank_sum([1.0] * 5, [1.0] * 5) == pytest.approx(0.5, abs=0.05)  # alike in all
    assert rank_sum([2.0] * 50, [1.0] * 50) < 1e-9


def rows(*parts: tuple[int, bool, float]) -> list[Score]:
    """Parts of (how many rows, whether they are right, loss)."""
    return [Score(loss, right, float(right), True, True) for n, right, loss in parts for _ in range(n)]


def prose(*parts: tuple[int, float]) -> list[Score]:
    """Rows whose answers are longer texts, (how many, loss): never right word for word."""
    return [Score(loss, False, 0.2, True, None, True) for n, loss in parts for _ in range(n)]


def findings(old: Sequence[Score], new: Sequence[Score], fresh: int | None = None,
             drift: Drift | None = CANARY) -> Findings:
    """The last `fresh` rows (None: all) are of the lesson that is judged; an adapter is in service."""
    first = 0 if fresh is None else len(old) - fresh
    return Findings(old, new, [i >= first for i in range(len(old))], True, drift)


def verdict(old: Sequence[Score], new: Sequence[Score], fresh: int | None = None,
            drift: Drift | None = CANARY) -> Verdict:
    return decide(findings(old, new, fresh, drift), LIMIT)


# ---- what counts as better or worse ----------------------------------------------------------------------------------


def test_better_passes() -> None:
    found = verdict(rows((10, True, 1.0), (30, False, 2.0)), rows((20, True, 0.5), (20, False, 1.0)))
    assert found.passed
    assert found.reason == "20 of 40 validation examples are answered exactly, 10 before"
    assert (found.wins, found.losses, found.p) == (10, 0, 1.0)
    assert found.old == {"rows": 40, "answered": 40, "right": 10, "loss": 1.75, "exact": 0.25, "reach": 0.25,
                         "ended": 1.0, "parsed": 1.0, "reward": None}
    assert found.new["exact"] == 0.5


def test_worse_is_refused() -> None:
    found = verdict(rows((10, True, 1.0)), rows((4, True, 1.0), (6, False, 1.0)))
    assert not found.passed
    assert (found.wins, found.losses, found.p) == (0, 6, 1 / 64)
    assert found.tests["all"]["right"] == {"wins": 0, "losses": 6, "p": 1 / 64}
    assert found.reason == "4 of 10 validation examples are answered exactly, 10 by the active adapter"


def test_the_first_lesson_has_only_rows_of_its_own() -> None:
    assert verdict(rows((8, False, 3.0)), rows((2, True, 1.0), (6, False, 1.0)), fresh=8).passed
    assert not verdict(rows((8, True, 1.0)), rows((8, True, 3.0)), fresh=8).passed


def test_rows_of_the_lesson_do_not_outweigh_earlier_ones() -> None:
    """A poisoned lesson wins on what it holds out itself; that makes good for nothing."""
    old = rows((20, True, 1.0), (70, False, 1.0), (10, False, 5.0))
    new = rows((13, False, 1.0), (7, True, 1.0), (70, False, 1.0), (10, True, 0.1))
    assert verdict(old, new).passed  # 10 wins, 13 losses, and the loss is lower
    found = verdict(old, new, fresh=10)
    assert not found.passed
    assert found.reason.startswith("7 of 90 validation examples of earlier lessons are answered exactly, 20 by ")


def test_how_sure_it_must_be_depends_on_the_lesson() -> None:
    """One row is right that was wrong, and six the other way round: chance in 0.06 of all cases."""
    def judged(of_lesson: list[float]) -> Verdict:
        old = [Score(i / 60, 0 < i < 7, float(0 < i < 7), True, True) for i in range(60)]
        new = [Score(i / 60 + (-1) ** i / 9, i == 0, float(i == 0), True, True) for i in range(60)]
        learned = [Score(loss, False, 0.0, True, True) for loss in of_lesson]
        return verdict(old + learned, new + learned, fresh=len(learned))

    alike, between, strange = (judged([i / 12 + shift for i in range(12)]) for shift in (0.0, 0.25, 0.6))
    assert [found.passed for found in (alike, between, strange, judged([]))] == [True, False, False, False]
    assert alike.surprise == pytest.approx(0.6, abs=0.1)
    assert strange.surprise is not None
    assert strange.surprise < 0.001
    assert judged([]).surprise is None
    assert strange.tests["earlier"]["right"]["p"] == pytest.approx(1 / 16)
    assert strange.reason.endswith(", after corrections that surprise it though they ask the same")
    assert "surprise" not in between.reason


def test_something_must_speak_for_it() -> None:
    """On the whole after a lesson like those before; on earlier rows too after one unlike them."""
    def judged(shift: float) -> Verdict:
        old = [Score(i / 60) for i in range(60)]
        new = [Score(i / 60 + (0.1 if i < 32 else -0.1)) for i in range(60)]
        learned = [i / 12 + shift for i in range(12)]
        return verdict(old + [Score(loss) for loss in learned], new + [Score(loss - 0.1) for loss in learned], fresh=12)

    assert judged(0.0).passed  # earlier rows: lower on 28, higher on 32; all rows: lower on 40, higher on 32
    assert judged(0.25).reason == ("no more right than the active adapter, and less sure on 32 of 60 validation "
                                   "examples of earlier lessons")
    assert not judged(0.6).passed


def test_what_asks_something_else_is_news() -> None:
    """Home commands after seven lessons of Snips: 24 of 60 earlier rows right, 27 by what served. By how these rows
    surprised it that was worse, and they were set aside as wrong.
    """
    def judged(right: int, strangeness: float | None) -> Verdict:
        old = [Score(i / 60, i < 27, float(i < 27), True, True) for i in range(60)]
        new = [Score(i / 60 + (-1) ** i / 9, 5 <= i < right + 5, float(5 <= i < right + 5), True, True)
               for i in range(60)]
        learned = rows((10, False, 3.0)), rows((8, True, 0.1), (2, False, 1.0))
        return decide(replace(findings(old + learned[0], new + learned[1], 10), strangeness=strangeness), LIMIT)

    assert judged(24, 0.001).passed
    for contradicting in (0.3, None):
        found = judged(24, contradicting)
        assert found.reason.endswith(", after corrections that surprise it though they ask the same")
    lost = judged(18, 0.001)
    assert lost.reason == "18 of 60 validation examples of earlier lessons are answered exactly, 27 by the active " \
                          "adapter"
    assert lost.strangeness == 0.001


def test_the_loss_tells_where_no_answer_can() -> None:
    old, lower, higher = ([Score(1.0 + d)] * 9 for d in (0, -0.1, 0.1))
    passed = verdict(old, lower)
    refused = verdict(old, higher)
    assert passed.passed
    assert passed.reason == "more sure than the active adapter on 9 of 9 validation examples"
    assert (passed.wins, passed.losses) == (9, 0)
    assert refused.reason == "less sure than the active adapter on 9 of 9 validation examples"
    few = verdict(old[:4], [*higher[:3], lower[0]])  # no test finds anything in four rows
    assert not few.passed
    assert few.reason == "no more right than the active adapter, and less sure on 3 of 4 validation examples"
    assert verdict(old, old).passed  # the same is not worse


def test_answers_that_go_wrong_sooner_are_worse() -> None:
    """Where none more is right as a whole, it still tells how far they are, as with intents that are swapped."""
    one = rows((1, True, 1.0))
    old = [*one, *[Score(1.0, False, 0.5, True, True)] * 20]
    sooner, later = (Score(0.9, False, reach, True, True) for reach in (0.1, 0.6))
    found = verdict(old, [*one, *[sooner] * 9, *[later] * 2, *old[12:]])
    assert not found.passed
    assert found.reason == ("its answers go wrong sooner than those of the active adapter on 9 of 21 validation "
                            "examples")
    assert verdict(old, [*one, *[later] * 9, *old[10:]]).passed


def test_more_right_answers_outweigh_a_higher_loss() -> None:
    assert verdict(rows((40, False, 1.0)), rows((12, True, 1.2), (28, False, 1.2))).passed
    assert not verdict(rows((40, False, 1.0)), rows((2, True, 1.2), (38, False, 1.2))).passed
    assert not verdict(rows((2, True, 1.0), (38, False, 1.0)), rows((8, True, 1.2), (32, False, 1.2))).passed  # 6 to 0


def test_a_surely_lower_loss_outweighs_a_few_more_wrong_answers() -> None:
    """The old adapter was let in for its right answers to the same rows: some of them were luck."""
    def judged(lost: int, lower: int) -> Verdict:
        """Of 40 rows `lost` are no longer right, the loss of `lower` is lower, answers are right further elsewhere."""
        old = [Score(1.0, i < lost, 1.0 if i < lost else 0.3, True, True) for i in range(40)]
        new = [Score(0.9 if i < lower else 1.1, False, 0.8 if i < lost else 0.4, True, True) for i in range(40)]
        return verdict(old, new)

    assert judged(5, 40).passed  # chance in 0.03 of all cases
    assert not judged(5, 20).passed  # the loss tells nothing
    assert not judged(9, 40).passed  # surely worse


@pytest.mark.parametrize("name", ["ended", "parsed"])
def test_answers_end_and_parse_as_before(name: str) -> None:
    """Some may fail to while the rows become likelier, as early in a life, but never most of them."""
    def failing(count: int, loss: float) -> list[Score]:
        return [Score(**{**asdict(score), name: i >= count})
                for i, score in enumerate(rows((19, False, loss), (1, True, loss)))]

    old = failing(0, 1.0)
    refused = verdict(old, failing(6, 1.0))
    assert not refused.passed
    assert refused.reason.startswith("6 of 20 validation examples have answers that ")
    assert verdict(old, failing(6, 0.5)).passed
    assert not verdict(old, failing(12, 0.5)).passed
    assert verdict(failing(6, 1.0), old).new[name] == 1.0


def test_losses_must_be_numbers() -> None:
    old = rows((9, False, 1.0))
    assert not verdict(old, rows((9, True, float("nan")))).passed
    assert not verdict(old, rows((9, True, 0.5)), drift=canary(float("nan"))).passed


def test_chances() -> None:
    """Of 150 lessons that make it better nearly all pass, of those that change nothing more than half, of those that
    make it worse none.
    """
    dice = random.Random(1)

    def passed(right: float, shift: float) -> float:
        def score(hard: float, right: float, shift: float) -> Score:
            is_right = hard + dice.gauss(0, 0.5) < right - 0.3
            return Score(2 + hard + shift + dice.gauss(0, 0.3), is_right, float(is_right), True, True)

        count = 0
        for _ in range(150):
            hard = [dice.gauss(0, 1) for _ in range(100)]
            count += verdict([score(h, 0, 0) for h in hard], [score(h, right, shift) for h in hard], fresh=10).passed
        return count / 150

    assert passed(0.0, 0.0) > 0.5
    assert passed(0.15, -0.1) > 0.95
    assert passed(-0.5, 0.2) < 0.01


# ---- nothing right, and corrections ----------------------------------------------------------------------------------


def test_nothing_right_is_no_reason_to_promote() -> None:
    """However much lower the loss is: it is trained longer, unless it became worse, too."""
    found = verdict(rows((12, False, 3.0)), rows((12, False, 1.0)))
    assert not found.passed
    assert found.reason == "0 of 12 validation examples are answered exactly, as before"
    assert verdict(rows((12, False, 3.0)), rows((1, True, 1.0), (11, False, 1.0))).passed


def test_texts_are_judged_by_their_loss() -> None:
    """Plain text has no answers, and a long answer is never the expected one word for word."""
    texts = [Score(1.0)] * 9
    assert verdict(texts, [Score(0.5)] * 9).passed
    assert verdict(prose((9, 1.0)), prose((9, 0.5))).passed
    assert verdict(prose((9, 1.0)), prose((9, 0.5))).reason.startswith("more sure than the active adapter on 9 of 9")
    assert verdict(texts + rows((9, False, 1.0)), [Score(0.5)] * 9 + rows((9, False, 0.5))).passed
    assert not verdict(texts + rows((10, False, 1.0)), [Score(0.5)] * 9 + rows((10, False, 0.5))).passed


# ---- the canary ------------------------------------------------------------------------------------------------------


def test_canary() -> None:
    """It may rise by the limit, and by six times that where clearly more is right than under the base."""
    base = rows((9, False, 1.0))
    few = rows((2, True, 0.5), (7, False, 0.5))
    many = rows((8, True, 0.5), (1, False, 0.5))

    def judged(old: list[Score], new: list[Score], rise: float, of_base: list[Score] | None = None) -> Verdict:
        return decide(replace(findings(old, new, drift=canary(rise)), base=of_base), LIMIT)

    assert judged(base, few, 0.04).passed
    refused = judged(few, few, 0.06, base)
    assert not refused.passed
    assert refused.reason == ("it unlearned other things: unrelated text surprises it 6.0 % more than the base model, "
                              "and it does not answer clearly more validation examples than that; 5 % are allowed")
    assert refused.canary == {"base": 20.0, "new": pytest.approx(21.2), "rise": 0.06,
                              "limit": 0.05, "kl": 0.01, "max_kl": 0.1}
    assert judged(few, many, 0.29, base).passed
    assert judged(many, many, 0.29, base).passed  # no more than what serves, which has earned it already
    assert not judged(many, many, 0.29, many).passed  # the base says as much
    beyond = judged(few, many, 0.31, base)
    assert beyond.reason.endswith("surprises it 31.0 % more than the base model; 5 % are allowed, 30 % where clearly "
                                  "more answers are right")
    further = [replace(score, reach=0.5) for score in few]
    assert judged(few, further, 0.29, base).passed  # surely right further than under the base
    of_base = Findings(base, many, [True] * 9, False, canary(0.15))  # the base serves
    assert decide(of_base, LIMIT).passed
    assert decide(replace(of_base, new=few), LIMIT).passed is False
    assert decide(replace(of_base, new=few, canary=canary(1.0)), Limits()).passed
    assert decide(replace(of_base, new=few, canary=None), Limits()).canary is None


def test_the_base_is_asked_where_it_decides() -> None:
    assert [needs_base(canary(rise), LIMIT) for rise in (-0.05, 0.045, 0.055, 0.295, 0.305)] == [
        False, False, True, True, False]
    assert [needs_base(canary(0.0, kl), LIMIT) for kl in (0.09, 0.11, 0.59, 0.61)] == [False, True, True, False]
    assert not needs_base(canary(0.055, 0.61), LIMIT)  # one is beyond both limits, whatever the other is
    assert not needs_base(None, LIMIT)
    assert not needs_base(canary(0.1, 1.0), Limits())


def test_what_is_expected_of_other_text_counts_beside_its_perplexity() -> None:
    """An adapter can find a text no more surprising and still expect other things there."""
    base = rows((9, False, 1.0))
    few = rows((2, True, 0.5), (7, False, 0.5))
    many = rows((8, True, 0.5), (1, False, 0.5))
    assert verdict(base, few, drift=canary(-0.01, 0.1)).passed
    refused = decide(Findings(base, few, [True] * 9, False, canary(-0.01, 0.25)), LIMIT)
    assert refused.reason == (
        "it unlearned other things: what it expects of unrelated text is 0.25 nats a token from the base model (KL), "
        "and it does not answer clearly more validation examples than that; 0.1 are allowed")
    assert refused.waits
    assert refused.canary["kl"] == 0.25
    assert decide(Findings(base, many, [True] * 9, False, canary(-0.01, 0.25)), LIMIT).passed
    beyond = decide(Findings(base, many, [True] * 9, False, canary(0.06, 0.7)), LIMIT)
    assert beyond.reason.endswith("0.7 nats a token from the base model (KL); 0.1 are allowed, 0.6 where clearly more "
                                  "answers are right")
    assert decide(Findings(base, few, [True] * 9, False, canary(0.01, 0.7)), Limits(rise=0.05)).passed


# ---- promotions of the past ------------------------------------------------------------------------------------------


def lesson(right: int, json: int, loss: float, of: int = 12) -> list[Score]:
    """Of 12 held-out rows so many are right, and so many JSON."""
    return [Score(loss + i / 100, i < right, 1.0 if i < right else 0.2 if i < json else 0.0, i < json, i < json)
            for i in range(of)]


BASE = lesson(0, 0, 3.4)


def test_useless_is_refused() -> None:
    """Eight steps on 60 rows: the loss fell from 3.38 to 1.80, nothing was right, one answer JSON. It was promoted."""
    found = decide(Findings(BASE, lesson(0, 1, 1.8), [True] * 12, False, canary(-0.01)), LIMIT)
    assert not found.passed


def test_useful_is_let_in() -> None:
    """The next one, half right and all JSON, was refused for a canary 8 % above that of the one that served."""
    useful = lesson(6, 12, 0.6)
    for old, serving in ((lesson(0, 1, 1.8), True), (BASE, False)):
        found = decide(Findings(old, useful, [True] * 12, serving, canary(0.070), BASE), LIMIT)
        assert found.passed, found.reason
        assert found.reason == "6 of 12 validation examples are answered exactly, 0 before"
    better = decide(Findings(useful, lesson(8, 12, 0.5), [True] * 12, True, canary(0.107), BASE), LIMIT)
    assert better.passed  # not surely more than what serves, but than the base


def test_a_persons_roll_back_is_kept() -> None:
    """Somebody rolled back to the base while a job trained; beside what serves now it is worse, and stays out."""
    rolled_back = lesson(9, 12, 0.4)
    new = lesson(4, 12, 0.9)
    assert decide(Findings(BASE, new, [True] * 12, False, canary(0.007)), LIMIT).passed  # beside what served before
    found = decide(Findings(rolled_back, new, [True] * 12, True, canary(0.007), BASE), LIMIT)
    assert not found.passed
    assert found.reason == "4 of 12 validation examples are answered exactly, 9 by the active adapter"


def test_without_scores() -> None:
    found = replace(verdict(rows((4, False, 1.0)), rows((4, True, 0.5))), scores={"a": {}}, base_scores={"a": {}})
    brief = without_scores(found.to_json())
    assert {"scores", "base_scores"} == found.to_json().keys() - brief.keys()
    assert without_scores({"passed": True}) == {"passed": True}  # of an earlier edgetune


# ---- rows that are judged by a reward --------------------------------------------------------------------------------


def rewarded(*values: float) -> list[Score]:
    return [Score(None, reward=value) for value in values]


@pytest.mark.parametrize(("old", "new", "passes", "reason"), [
    ([0.2] * 8, [0.6] * 8, True, "answers to 8 validation examples earn 0.600 on average, 0.200 by the active"),
    ([0.5] * 8, [0.5] * 8, False, "earn 0.500 on average, 0.500 by the active adapter: no higher"),
    ([0.5] * 8, [0.4] * 7 + [1.9], False, "its answers earn less than those of the active adapter on 7 of 8"),
    ([1.0, 0.0, 0.0], [0.9, 1.0, 0.0], True, "earn 0.633 on average, 0.333 by the active adapter")])
def test_what_answers_earn_decides_where_there_is_none_to_compare(old: list[float], new: list[float], passes: bool,
                                                                  reason: str) -> None:
    found = verdict(rewarded(*old), rewarded(*new))
    assert found.passed is passes
    assert reason in found.reason
    assert (found.wins, found.losses) == (sum(map(float.__gt__, new, old)), sum(map(float.__lt__, new, old)))


def test_the_canarys_larger_limit_holds_where_clearly_more_answers_earn_more() -> None:
    for better, passes in ((8, True), (2, False)):
        new = rewarded(*[0.6] * better, *[0.2] * (8 - better))
        found = decide(Findings(rewarded(*[0.2] * 8), new, [True] * 8, canary=canary(0.1)), LIMIT)
        assert found.passed is passes, found.reason
