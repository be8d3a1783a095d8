"""edgetune.daemon.jobs.gate: ranks against counting, decisions on rounds made up, and two real adapters."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import pytest

import edgetune
from edgetune.daemon.jobs.gate import Exam, Score, Verdict, decide, judge, rank_sum
from edgetune.errors import DataError
from edgetune.serving.llama import LlamaModel

CANARY = (20.0, 20.1)


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


def verdict(old: list[Score], new: list[Score], fresh: int = 0, canary: tuple[float, float] = CANARY) -> Verdict:
    return decide(old, new, [i >= len(old) - fresh for i in range(len(old))], canary)


def test_better_passes() -> None:
    found = verdict(rows((10, True, 1.0), (30, False, 2.0)), rows((20, True, 0.5), (20, False, 1.0)))
    assert found.passed
    assert (found.wins, found.losses, found.p) == (10, 0, 1.0)
    assert found.old == {"rows": 40, "loss": 1.75, "exact": 0.25, "reach": 0.25, "ended": 1.0, "parsed": 1.0,
                         "canary": 20.0}
    assert found.new["exact"] == 0.5


def test_worse_is_refused() -> None:
    found = verdict(rows((10, True, 1.0)), rows((4, True, 1.0), (6, False, 1.0)))
    assert not found.passed
    assert (found.wins, found.losses, found.p) == (0, 6, 1 / 64)
    assert "0 better, 6 worse" in found.reason


def test_the_first_round_has_only_rows_of_its_own() -> None:
    assert verdict(rows((8, False, 3.0)), rows((8, False, 1.0)), fresh=8).passed
    assert not verdict(rows((8, False, 1.0)), rows((8, False, 3.0)), fresh=8).passed


def test_rows_of_the_round_do_not_outweigh_earlier_ones() -> None:
    """A poisoned round wins on what it holds out itself; that makes good for nothing."""
    old = rows((20, True, 1.0), (70, False, 1.0), (10, False, 5.0))
    new = rows((13, False, 1.0), (7, True, 1.0), (70, False, 1.0), (10, True, 0.1))
    assert verdict(old, new).passed  # 10 wins, 13 losses, and the loss is lower
    found = verdict(old, new, fresh=10)
    assert not found.passed
    assert "of earlier rounds" in found.reason


def test_how_sure_it_must_be_depends_on_the_round() -> None:
    """One row is right that was wrong, and six the other way round: chance in 0.06 of all cases."""
    def judged(of_round: list[float]) -> Verdict:
        old = [Score(i / 60, 0 < i < 7, float(0 < i < 7), True, True) for i in range(60)]
        new = [Score(i / 60 + (-1) ** i / 9, i == 0, float(i == 0), True, True) for i in range(60)]
        learned = [Score(loss, False, 0.0, True, True) for loss in of_round]
        return verdict(old + learned, new + learned, fresh=len(learned))

    alike, between, strange = (judged([i / 12 + shift for i in range(12)]) for shift in (0.0, 0.25, 0.6))
    assert [found.passed for found in (alike, between, strange, judged([]))] == [True, False, False, False]
    assert alike.surprise == pytest.approx(0.6, abs=0.1)
    assert strange.surprise is not None
    assert strange.surprise < 0.001
    assert judged([]).surprise is None
    assert "1 better, 6 worse" in strange.reason
    assert "unlike those before" in strange.reason
    assert "unlike" not in between.reason


def test_something_must_speak_for_it() -> None:
    """On the whole after a round like those before; on earlier rows too after one unlike them."""
    def judged(shift: float) -> Verdict:
        old = [Score(i / 60) for i in range(60)]
        new = [Score(i / 60 + (0.1 if i < 32 else -0.1)) for i in range(60)]
        learned = [i / 12 + shift for i in range(12)]
        return verdict(old + [Score(loss) for loss in learned], new + [Score(loss - 0.1) for loss in learned], fresh=12)

    assert judged(0.0).passed  # earlier rows: lower on 28, higher on 32; all rows: lower on 40, higher on 32
    assert "nothing speaks for it on rows of earlier rounds" in judged(0.25).reason
    assert not judged(0.6).passed


def test_the_loss_tells_where_no_answer_can() -> None:
    old, lower, higher = ([Score(1.0 + d)] * 9 for d in (0, -0.1, 0.1))
    passed = verdict(old, lower)
    refused = verdict(old, higher)
    assert passed.passed
    assert (passed.wins, passed.losses) == (9, 0)
    assert not refused.passed
    assert "loss" in refused.reason
    few = verdict(old[:4], [*higher[:3], lower[0]])  # no test finds anything in four rows
    assert not few.passed
    assert "nothing speaks for it" in few.reason
    assert verdict(old, old).passed  # the same is not worse


def test_answers_that_go_wrong_sooner_are_worse() -> None:
    """Where none is right as a whole, it still tells how far they are, as with intents that are swapped."""
    old = [Score(1.0, False, 0.5, True, True)] * 20
    sooner, later = (Score(0.9, False, reach, True, True) for reach in (0.1, 0.6))
    found = verdict(old, [sooner] * 9 + [later] * 2 + old[11:])
    assert not found.passed
    assert "2 better, 9 worse" in found.reason
    assert verdict(old, [later] * 9 + old[9:]).passed


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
        return [Score(**{**asdict(score), name: i >= count}) for i, score in enumerate(rows((20, False, loss)))]

    old = failing(0, 1.0)
    refused = verdict(old, failing(6, 1.0))
    assert not refused.passed
    assert "0 better, 6 worse" in refused.reason
    assert verdict(old, failing(6, 0.5)).passed
    assert not verdict(old, failing(12, 0.5)).passed
    assert verdict(failing(6, 1.0), old).new[name] == 1.0


def test_canary() -> None:
    old = rows((9, False, 1.0))
    new = rows((9, True, 0.5))
    assert verdict(old, new, canary=(20.0, 20.39)).passed
    refused = verdict(old, new, canary=(20.0, 20.41))
    assert not refused.passed
    assert "canary" in refused.reason
    assert not verdict(old, rows((9, True, float("nan")))).passed
    assert not verdict(old, new, canary=(20.0, float("nan"))).passed


def test_chances() -> None:
    """Of 400 rounds that make it better nearly all pass, of those that change nothing more than half, of those that
    make it worse none.
    """
    dice = random.Random(1)

    def passed(right: float, shift: float) -> float:
        def score(hard: float, right: float, shift: float) -> Score:
            is_right = hard + dice.gauss(0, 0.5) < right - 0.3
            return Score(2 + hard + shift + dice.gauss(0, 0.3), is_right, float(is_right), True, True)

        count = 0
        for _ in range(400):
            hard = [dice.gauss(0, 1) for _ in range(100)]
            count += verdict([score(h, 0, 0) for h in hard], [score(h, right, shift) for h in hard], fresh=10).passed
        return count / 400

    assert passed(0.0, 0.0) > 0.5
    assert passed(0.15, -0.1) > 0.95
    assert passed(-0.5, 0.2) < 0.01


# ---- through llama.cpp -----------------------------------------------------------------------------------------------

ROWS = [{"prompt": f"turn the light {i}", "completion": '{"set":"10"}'} for i in range(12)]


@pytest.fixture(scope="module")
def served(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    """With two adapters: of right answers, and of wrong ones."""
    folder = tmp_path_factory.mktemp("adapters")
    with LlamaModel(tiny_llama, threads=1) as served:
        for name, answer in (("right", '{"set":"10"}'), ("wrong", "off the light off the light")):
            trainer = edgetune.Trainer(tiny_llama, lr=2e-2, rank=8, steps=60, max_length=96, threads=1, shuffle=False)
            trainer.add([{"prompt": f"turn the light {i}", "completion": answer} for i in range(12, 36)])
            trainer.train()
            trainer.save(folder / name)
            served.load_adapter(folder / name, name)
        yield served


def test_judge(served: LlamaModel) -> None:
    canary = "turn the light off, set the light to 10"
    first = judge(served, Exam(ROWS, canary), None, "right")
    assert first.new["exact"] == first.new["parsed"] == first.new["ended"] == 1.0
    assert first.old["exact"] == 0.0
    assert first.new["loss"] < first.old["loss"]
    assert first.new["canary"] != first.old["canary"]
    assert len(first.scores) == len(ROWS)
    found = judge(served, Exam(ROWS), "right", "wrong")
    assert not found.passed
    assert (found.wins, found.losses) == (0, 12)
    assert "worse" in found.reason
    assert "earlier rounds" not in found.reason  # nothing says that there were any
    assert judge(served, Exam(ROWS), "wrong", "right").passed


def test_the_first_rows_are_of_earlier_rounds(served: LlamaModel) -> None:
    """A key `fresh` in a user's rows means nothing to the gate."""
    rows = [{**row, "fresh": number % 2 == 0} for number, row in enumerate(ROWS)]
    found = judge(served, Exam(rows, established=8), "right", "wrong")
    assert "worse on rows that are right of earlier rounds: 0 better, 8 worse" in found.reason
    assert found.surprise is not None
    plain = judge(served, Exam(ROWS, established=8), "right", "wrong")
    assert (found.reason, found.surprise) == (plain.reason, plain.surprise)
    assert judge(served, Exam(rows), "right", "wrong").surprise is None


def test_judge_asks_the_old_one_only_what_is_new(served: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    known = judge(served, Exam(ROWS[:8]), "wrong", "right").scores
    asked = []
    complete = served.complete
    monkeypatch.setattr(served, "complete", lambda prompts, budgets: (
        asked.append((served.active, len(prompts))), complete(prompts, budgets))[1])
    again = judge(served, Exam(ROWS), "right", "wrong", known=known)
    assert asked == [("right", 4), ("wrong", 12)]
    assert (again.wins, again.losses) == (0, 12)
    assert again.old["exact"] == 1.0


def test_rows_that_cannot_be_answered(served: LlamaModel) -> None:
    """A row longer than max_length has a loss but no answer; one whose answer is cut off has neither."""
    long = {"prompt": "turn", "completion": " light" * 200}
    cut = {"prompt": " light" * 200, "completion": "on"}
    found = judge(served, Exam([*ROWS[:2], long, cut], max_length=64), None, "right")
    assert [score["loss"] is None for score in found.scores.values()] == [False, False, False, True]
    assert [score["right"] is None for score in found.scores.values()] == [False, False, True, True]
    text = judge(served, Exam([{"text": "turn the light off"}]), None, "right")
    assert text.new["exact"] is None
    mixed = judge(served, Exam([{"text": "turn the light off"}, ROWS[0]]), "wrong", "right")
    assert [score["right"] for score in mixed.scores.values()] == [None, True]  # each answer is its own row's
    with pytest.raises(DataError, match=r"the gate cannot judge by it, the row has an unknown shape .*; name a valid"):
        judge(served, Exam([{"prompt": "a", "better": "b", "worse": "c"}]), None, "right")
    with pytest.raises(DataError, match="no rows"):
        judge(served, Exam([]), None, "right")
