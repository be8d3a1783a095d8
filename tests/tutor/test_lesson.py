"""What a round learns: shares of what was verified, of what was not, and of what was learned before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from asked import question

from edgetune.formats.bundle import Bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training.config import TrainConfig
from edgetune.tutor.lesson import AGREED, ANSWERED, LABELLED, REPLAYED, Taught, lesson
from edgetune.tutor.options import TutorOptions
from edgetune.tutor.questions import pool_of
from edgetune.tutor.setting import Setting

OPTIONS = TutorOptions(replay=0.25, unverified=0.5)


@pytest.fixture
def setting(bundle: Bundle, tmp_path: Path) -> Iterator[Setting]:
    """Ten labelled questions of three tokens each."""
    labelled = [question(f"q {i}", "ab") for i in range(10)]
    pool = pool_of(labelled, [], False, held=[question("held", "x")])
    with closing(Tokenizer(bundle.gguf)) as tokenizer:
        yield Setting(bundle, tokenizer, pool, None, OPTIONS, TrainConfig(), tmp_path)


def agreed(weights: Sequence[float]) -> list[Taught]:
    return [Taught(f"agreed {i}", "ab", weight, AGREED, 3) for i, weight in enumerate(weights)]


def mass(rows: Sequence[Taught], *sources: str) -> float:
    return sum(one.tokens * one.weight for one in rows if one.source in sources)


def test_what_is_trusted_less_may_be_more_rows(setting: Setting) -> None:
    """All ten labelled rows weigh 30; so may what nobody verified: 40 rows of a quarter each, ten of 1."""
    for weight, kept in ((1.0, 10), (0.25, 40)):
        rows = lesson(setting, 1, agreed([weight] * 60), [])
        assert [one.source for one in rows].count(AGREED) == kept
        assert mass(rows, AGREED) == mass(rows, LABELLED) == 30


def test_the_least_sure_are_left_out(setting: Setting) -> None:
    rows = lesson(setting, 1, agreed([0.5] * 15 + [0.4] * 30 + [0.3] * 30), [])
    weights = [one.weight for one in rows if one.source == AGREED]
    assert weights == [0.5] * 15 + [0.4] * 6
    assert mass(rows, AGREED) == pytest.approx(22.5 + 7.2)  # one of 0.4 more would be above 30


def test_a_share_is_labelled_and_earlier_rows(setting: Setting) -> None:
    new = [Taught(f"new {i}", "ab", 1.0, ANSWERED, 3) for i in range(15)]
    earlier = [Taught(f"old {i}", "ab", 1.0, ANSWERED, 3) for i in range(10)]
    rows = lesson(setting, 1, new, earlier)
    assert mass(rows, LABELLED, REPLAYED) == mass(rows, ANSWERED) / 3  # a quarter of all
    rows = lesson(replace(setting, options=replace(OPTIONS, replay=0.5)), 1, new, earlier)
    assert mass(rows, LABELLED) == 30  # first; then five earlier ones
    assert mass(rows, REPLAYED) == 15


def test_the_newest_answer_to_a_question_counts(setting: Setting) -> None:
    old, newer = (Taught("old", text, 1.0, ANSWERED, 3) for text in ("before", "after"))
    rows = lesson(replace(setting, options=replace(OPTIONS, replay=0.9)), 1, agreed([1.0] * 5), [old, newer])
    assert [one.text for one in rows if one.source == REPLAYED] == ["after"]
