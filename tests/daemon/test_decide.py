"""edgetune.daemon.jobs.decide: each rule by made-up answers, and how often the rules are wrong by simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest

from edgetune.daemon.jobs.decide import NO_ROWS, Findings, GateRules, decide, without_scores
from edgetune.daemon.jobs.exam import NOT_WORSE, RowScore
from edgetune.daemon.options import Limits
from edgetune.data.decisions import NOUL, TypedQuestion
from edgetune.evaluation.acceptance import ALPHA, Decision, Paired, Split, alpha_of_test
from edgetune.evaluation.canary import Drift

LIMITS = Limits(0.05, 0.1)
NIGHTS = 365


def answers(right, wrong, loss=1.0):
    """So many right answers, then wrong ones, all with this loss."""
    return [RowScore(loss, i < right, 1.0 if i < right else 0.3, True, True) for i in range(right + wrong)]


def verdict(old, new, earlier=0, **facts):
    """earlier: how many of the first rows are of earlier jobs."""
    return decide(Findings(old, new, ["a"] * earlier, **{"canary": Drift(0.01, 0.01, 100, 20.0), **facts}), LIMITS)


def test_four_wins_of_four_suffice_once():
    """The second test since a publication must find more."""
    found = verdict(answers(0, 4), answers(4, 0))
    assert (found.passed, found.wins, found.losses, found.p, found.alpha) == (True, 4, 0, 1 / 16, ALPHA / 2)
    assert found.reason == ("4 of 4 validation examples are answered exactly, 0 before; "
                            "4 better, 0 worse (p 0.062, at most 0.062 required)")
    again = verdict(answers(0, 4), answers(4, 0), tests_before=1)
    assert (again.passed, again.waits, again.test, again.alpha) == (False, True, 1, ALPHA / 6)
    assert again.reason == "not surely better: 4 better, 0 worse (p 0.062, at most 0.021 required)"
    assert verdict(answers(0, 6), answers(6, 0), tests_before=1).passed
    assert not verdict(answers(0, 3), answers(3, 0)).passed
    assert not verdict(answers(4, 8), answers(4, 8)).passed  # the same is not better
    assert verdict(answers(0, 8, 0.5), answers(8, 0, 1.5)).passed  # right answers count before their likelihood
    text = verdict([RowScore(1.0)] * 8, [RowScore(0.5)] * 8)  # which has no answer
    assert text.passed
    assert text.reason.startswith("the right answers to 8 validation examples are likelier; 8 better, 0 worse")


@pytest.mark.parametrize("right", [0, 8])
@pytest.mark.parametrize("earlier", [0, 4])
def test_likelihood_publishes_nothing(right, earlier):
    """However much likelier all right answers are, if none is right, or all are, under either."""
    old = answers(right, 8 - right, 3.0)
    found = verdict(old, answers(right, 8 - right, 0.1), earlier)
    assert (found.passed, found.waits, found.wins, found.losses) == (False, True, 0, 0)
    assert found.tests["all"]["likelier"] == {"wins": 8, "losses": 0, "ties": 0}


def test_likelihood_does_not_outvote_right_answers():
    """17 of 72 right, 22 before, others likelier: such an adapter became active, and took 400 questions from 61 to
    24 %.
    """
    old = [*answers(22, 0, 0.0), *answers(0, 50, 2.0)]
    new = [*answers(17, 5, 0.0), *answers(0, 50, 1.0)]
    found = verdict(old, new)
    assert (found.passed, found.wins, found.losses) == (False, 0, 5)
    more = verdict([*answers(3, 17, 1.0), *answers(0, 8)], [*answers(9, 11, 9.0), *answers(8, 0)], 20)
    assert more.passed, more.reason  # six earlier questions more are right: that others are less likely refuses nothing


def test_questions_drawn_from_the_traffic_decide():
    """Where there are four or more; then corrections, on which the active adapter is wrong by choice, show nothing."""
    corrected = (answers(0, 20), answers(20, 0))
    assert verdict(*corrected).promises.startswith("better on questions like those that were corrected; nothing is")
    three = verdict(*corrected, drawn_old=answers(3, 0), drawn_new=answers(0, 3))
    assert (three.passed, three.drawn) == (True, None)
    found = verdict(*corrected, drawn_old=answers(9, 1), drawn_new=answers(9, 1))
    assert (found.passed, found.waits, found.p) == (False, True, 1.0)
    silent = [RowScore(None, True, unrated=True)] * 3
    changed = [RowScore(None, False, unrated=True)] * 3
    asked = {"drawn_old": [*answers(0, 8), *silent], "drawn_new": [*answers(8, 0), *changed], "unrated": 3}
    found = verdict(*corrected, **asked)
    assert (found.wins, found.losses, found.passed) == (8, 3, False)
    assert found.drawn == {"rows": 11, "unrated": 3, "changed": 3}
    assert found.reason == (
        "not surely better: 8 better, 3 worse of 11 questions drawn from all that were asked (p 0.11, at most 0.062 "
        "required); 3 of the worse ones are answers that nobody rated, so that the present one counts as right: "
        "edgetune feedback check asks you")
    found = verdict(*corrected, **{**asked, "drawn_new": [*answers(8, 0), *silent]})
    assert found.passed
    assert found.promises == "better on the questions that people ask"
    assert found.reason.endswith("8 better, 0 worse of 11 questions drawn from all that were asked (p 0.0039, at most "
                                 "0.062 required)")


def test_new_questions_or_all_of_them_may_show_that_it_is_better():
    """Twice the smaller p counts, since two tests are tried."""
    news = verdict([*answers(30, 0), *answers(0, 8)], [*answers(30, 0), *answers(8, 0)], 30)
    assert (news.passed, news.wins, news.p) == (True, 8, 2 / 2**8)
    old = [*answers(10, 20), *answers(2, 6)]
    more = [*answers(22, 8), *answers(3, 5)]
    same = verdict(old, more, 30)
    assert (same.passed, same.wins, same.p) == (True, 13, 2 / 2**13)
    def rewarded(*values):
        return [RowScore(None, reward=value) for value in values]

    found = verdict(rewarded(*[0.2] * 8), rewarded(*[0.6] * 8))
    assert found.passed
    assert found.reason.startswith("answers to 8 validation examples score 0.600 on average, 0.200 before; 8 better")
    assert not verdict(rewarded(*[0.5] * 8), rewarded(*[0.5] * 8)).passed
    assert not verdict(rewarded(*[0.5] * 8), rewarded(*[0.4] * 7, 9.9)).passed
    pairs = [RowScore(1.2, False, pair=True)] * 6
    told = verdict(pairs, [RowScore(0.3, True, pair=True)] * 6)
    assert told.reason.startswith("6 of 6 validation examples are told apart rightly, 0 before")
    assert not verdict([RowScore(0.3, True, pair=True)] * 6, pairs).passed


def test_an_adapter_that_need_not_be_better():
    """It is refused where its losses on the questions of all jobs are no chance; its test spends nothing."""
    old = [*answers(6, 2), *answers(0, 4)]

    def found(new, earlier=8):
        given = Findings(old, new, [""] * earlier, tests_before=3, required=NOT_WORSE)
        return decide(given)

    same = found(old)
    assert (same.passed, same.p, same.alpha, same.test) == (True, 1.0, ALPHA, 3)
    assert same.reason.endswith("0 better, 0 worse (p 1, more than 0.125 required)")
    assert found([*answers(4, 4), *answers(0, 4)]).passed  # two losses may be chance
    worse = found([*answers(3, 5), *answers(0, 4)])
    assert (worse.passed, worse.p) == (False, 1 / 2**3)
    assert worse.reason == "worse on held-out questions: 0 better, 3 worse (p 0.12, more than 0.125 required)"
    assert found([*answers(3, 5), *answers(4, 0)]).passed  # where others are won
    assert decide(Findings([], [], required=NOT_WORSE)).reason == NO_ROWS
    assert not decide(Findings([], [])).passed


def test_what_is_worse_on_earlier_questions_is_refused_and_its_rows_do_not_wait():
    old = [*answers(20, 0), *answers(0, 8)]
    found = verdict(old, [*answers(14, 6), *answers(8, 0)], 20)
    assert (found.passed, found.waits) == (False, False)
    assert found.reason == ("worse on questions of earlier jobs: 6 worse, 0 better "
                            "(p 0.016, more than 0.125 required)")
    assert found.tests["new"]["p_better"] == 1 / 2**8
    assert found.remembered == "14 of 20 questions of an earlier job are right, 20 before"
    assert found.rounds == [{"job": "a", "rows": 20, "right": 14, "before": 20}]
    for right in (0, 20):  # they are less likely, which may refuse it
        before = [*answers(right, 20 - right), *answers(0, 8)]
        assert not verdict(before, [*answers(right, 20 - right, 1.9), *answers(8, 0)], 20).passed
    assert verdict(old, [*answers(19, 1, 0.9), *answers(8, 0)], 20).passed  # one more wrong may be chance


def rules(earlier, new, tests_before=0):
    """Of counts of right answers."""
    level = alpha_of_test(ALPHA, tests_before)
    return GateRules(*(Decision(counts, counts, level) for counts in (earlier, new, earlier + new, Paired(0, 0))),
                 tests_before)


@pytest.mark.parametrize("facts", [{}, {"drawn": True}])
def test_a_test_that_nothing_could_pass_is_not_counted(facts):
    """By how many rows the two differ, whoever is better. One that could be passed is counted, whatever came of it."""
    for level, enough in ((0, 4), (1, 6), (2, 7)):
        for wins in range(enough + 1):
            for rows in (enough - 1, enough):
                same = answers(3, 3)
                won = min(wins, rows)
                old, new = [*answers(0, won), *answers(rows - won, 0)], [*answers(won, 0), *answers(0, rows - won)]
                if facts:
                    found = decide(Findings([], [], drawn_old=[*same, *old], drawn_new=[*same, *new],
                                            tests_before=level))
                else:
                    found = verdict([*same, *old], [*same, *new], tests_before=level)
                assert found.test == level + (rows == enough)


def test_wrong_answers_are_refused_and_rows_wait_unless_something_speaks_against_them():
    """Wins and losses that were measured after 80 corrections of 12 intents (SmolLM2-135M): 40 with one another's
    labels, 40 whose intents were swapped, 30 of another task. All are better on their own new questions.
    """
    for earlier in (Paired(3, 12, 1), Paired(2, 12, 2)):
        assert "worse on questions of earlier jobs" in rules(earlier, Paired(8, 0)).worse
    other = rules(Paired(7, 3, 6), Paired(6, 0))
    assert (other.worse, other.not_better) == ("", "")
    old = [*answers(9, 1), *answers(4, 4)]
    drifted = Drift(0.06, 0.01, 100, 20.0)
    better = answers(8, 0)
    for new, facts, waits in ((old, {}, True), ([*answers(9, 1), *better], {"canary": drifted}, True),
                              ([*answers(9, 1), *answers(0, 8)], {}, False), ([*answers(3, 7), *better], {}, False)):
        found = verdict(old, new, 10, **facts)
        assert (found.passed, found.waits) == (False, waits), found.reason


def test_wrong_answers_to_one_question_are_not_outvoted_by_right_ones_to_another():
    """Of 20 earlier rows to one question 8 became wrong, of 20 to another 12 right, and all 9 new ones are better."""
    def asking(key, scores):
        return [replace(score, question=key) for score in scores]

    first, second = (TypedQuestion(NOUL, name, ("false", "true"), ("", "")).key for name in ("Is it on?", "Is it hot?"))
    old = [*asking(first, answers(20, 0)), *asking(second, answers(4, 16)), *answers(0, 9)]
    new = [*asking(first, answers(12, 8)), *asking(second, answers(16, 4)), *answers(9, 0)]
    found = verdict(old, new, 40)
    assert (found.passed, found.waits) == (False, False)
    assert found.reason.startswith("worse on the question 'Is it on?': 8 worse, 0 better (p 0.0039, more than 0.0625 ")
    plain = verdict([replace(one, question="") for one in old], [replace(one, question="") for one in new], 40)
    assert plain.passed
    drawn = decide(Findings([], [], drawn_old=old[:40], drawn_new=new[:40]))
    assert "worse on the question 'Is it on?'" in drawn.reason
    same = verdict(old, [*asking(first, answers(19, 1)), *new[20:]], 40)
    assert same.passed


@pytest.mark.parametrize(("canary", "reason"), [
    (Drift(0.06, 0.01, 9, 20.0), "unrelated text surprises it 6.0 % more than the base model, 5 % are allowed"),
    (Drift(0.01, 0.25, 9, 20.0), "is 0.25 nats a token from the base model (KL), 0.1 are allowed")])
def test_unrelated_text_has_limits(canary, reason):
    found = verdict(answers(0, 9), answers(9, 0), canary=canary)
    assert not found.passed
    assert found.reason.startswith("it unlearned other things: ")
    assert found.reason.endswith(reason)
    assert found.canary == {"base": 20.0, "new": 20.0 * (1 + canary.rise), "rise": canary.rise, "limit": 0.05,
                            "kl": canary.kl, "max_kl": 0.1}
    assert decide(Findings(answers(0, 9), answers(9, 0), canary=canary), Limits()).passed


def test_what_a_verdict_says_besides():
    """Corrections that were kept are a number; scores of rows are not shown; numbers must be finite."""
    found = verdict(answers(0, 8), answers(8, 0), corrected=answers(30, 10))
    assert found.corrected == {"rows": 40, "kept": 30}
    assert found.reason.startswith("30 of 40 corrected answers kept; 8 of 8 validation examples are answered exactly")
    assert verdict(answers(0, 8), answers(8, 0)).corrected is None
    whole = replace(found, scores={"a": {}}).to_json()
    assert whole.keys() - without_scores(whole).keys() == {"scores"}
    assert without_scores({"passed": True, "scores": {}, "base_scores": {}, "again": True}) == {"passed": True,
                                                                                            "again": True}
    for new, facts in ((answers(9, 0, math.nan), {}), (answers(9, 0), {"canary": Drift(math.nan, 0.0, 9)})):
        found = verdict(answers(0, 9), new, **facts)
        assert (found.passed, found.waits, found.reason) == (False, False, "its losses are not finite")


def passes(earlier, won, new, better, tests_before):
    """Of so many earlier and new questions that differ, of which it won so many."""
    found = rules(Paired(won, earlier - won), Paired(better, new - better), tests_before)
    return not (found.worse or found.not_better)


def published(dice, nights, gain, fresh, ring=False):
    """Whether any of so many adapters is published. gain: by which a question that differs is rather won. fresh: new
    questions of each night, which wait for three. ring: earlier questions are two sets by turns.
    """
    earlier = np.resize([20, 60], nights) if ring else dice.integers(10, 100, nights)
    new = np.minimum(fresh * np.arange(1, nights + 1), 3 * fresh)
    won = dice.binomial(earlier, 0.5 + gain)
    better = dice.binomial(new, 0.5 + gain)
    return any(map(passes, earlier.tolist(), won.tolist(), new.tolist(), better.tolist(), range(nights)))


@pytest.mark.dev
@pytest.mark.parametrize(("fresh", "ring"), [(4, False), (10, True)])
def test_of_a_year_of_useless_adapters_none_is_published_in_most_years(fresh, ring):
    """With questions that drift, and with a ring of two sets of them, of which it wins and loses as many. Of people who
    do not rate all answers: test_gate_simulated.py.
    """
    dice = np.random.default_rng(fresh)
    years = 200
    share = sum(published(dice, NIGHTS, 0.0, fresh, ring) for _ in range(years)) / years
    assert share <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / years)


@pytest.mark.parametrize(("held", "checkpoints"), [(16, 10), (60, 10), (200, 40)])
def test_a_useless_checkpoint_that_was_chosen_by_other_rows_seldom_passes(held, checkpoints):
    """Each row's loss differs from the active adapter's by chance. Had the same rows chosen it, it would often pass."""
    dice = np.random.default_rng(held)
    split = Split.of(map(str, range(held)))
    selecting, deciding = ([int(name) for name in side] for side in (split.selecting, split.deciding))
    passed = {"apart": 0, "same": 0}
    for _ in range(runs := 400):
        gained = dice.standard_normal((checkpoints, held))
        for name, choose, decides in (("apart", selecting, deciding), ("same", range(held), range(held))):
            best = gained[gained[:, choose].mean(1).argmax(), decides]
            wins = int((best > 0).sum())
            passed[name] += not rules(Paired(0, 0), Paired(wins, len(best) - wins)).not_better
    level = ALPHA / 2
    assert passed["apart"] / runs <= level + 3 * math.sqrt(level * (1 - level) / runs)
    assert passed["same"] / runs > 3 * level


def test_what_is_better_is_published_within_a_few_nights():
    """Nine of ten series of four adapters that win 7 of 10 questions that differ, of ten new ones each."""
    dice = np.random.default_rng(0)
    assert sum(published(dice, 4, 0.2, 10) for _ in range(200)) > 180
