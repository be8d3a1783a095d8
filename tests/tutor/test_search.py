"""How far a round goes: all of the way, unless less of it is surely better."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from edgetune.adapters import store
from edgetune.formats.bundle import Bundle
from edgetune.tutor import search as module
from edgetune.tutor.questions import Question
from edgetune.tutor.search import Point


@pytest.mark.parametrize(("nearer", "further", "is_better"), [(4, 0, True), (3, 0, False), (7, 2, True), (6, 2, False),
                                                              (11, 6, False), (0, 0, False)])
def test_rewards_decide_by_signs(nearer: int, further: int, is_better: bool) -> None:
    """P(at most so many losses of so many coins) <= 0.1; log-probabilities are not asked then."""
    full = Point(1.0, [0.5] * 30, [-1.0] * 30)
    less = Point(0.5, [0.6] * nearer + [0.4] * further + [0.5] * (30 - nearer - further), [-0.1] * 30)
    assert less.is_surely_better(full) == is_better


def test_few_right_answers_decide_by_how_likely_they_are() -> None:
    full = Point(1.0, [], [-1.0] * 5)
    assert Point(0.5, [], [-0.9] * 4 + [-0.8]).is_surely_better(full)
    assert not Point(0.5, [], [-0.9] * 4 + [-1.9]).is_surely_better(full)
    assert not Point(0.5, [], []).is_surely_better(Point(1.0, [], []))
    assert Point(0.5, [], [-0.9] * 30).is_surely_better(Point(1.0, [], [-1.0] * 30))  # the first of many


@pytest.mark.parametrize(("rewards", "share"), [
    ([[0.5] * 8, [0.5] * 8, [0.5] * 8], 1.0),
    ([[0.5] * 8, [0.6] * 8, [0.6] * 8], 0.5),
    ([[0.5] * 8, [0.6] * 8, [0.7] * 8], 0.25),
    ([[0.5] * 8, [0.6] * 3 + [0.5] * 5, [0.6] * 4 + [0.5] * 4], 0.25)])
def test_the_way_that_is_gone(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                              rewards: Sequence[Sequence[float]], share: float) -> None:
    given = dict(zip(module.SHARES, rewards, strict=True))
    monkeypatch.setattr(module, "measured", lambda _setting, _questions, _pairs, at: Point(at, given[at], []))
    monkeypatch.setattr(module, "between", lambda _first, _second, at: at)
    saved: list[float] = []
    monkeypatch.setattr(store, "save_adapter", lambda _out, pairs, *_: saved.append(pairs))
    monkeypatch.setattr(store, "save_schema", lambda *_: None)

    class Setting:
        def __init__(self) -> None:
            self.bundle = bundle
            self.pool = type("Pool", (), {"dev": []})()

        def pairs(self, _adapter: Path | None) -> dict[str, object]:
            return {}
    asked = [Question(f"{i}", {"prompt": f"{i}"}, agreed="x") for i in range(8)]
    found = module.search(Setting(), asked, None, tmp_path, tmp_path / "out")  # type: ignore[arg-type]
    assert (found["share"], saved) == (share, [share])
