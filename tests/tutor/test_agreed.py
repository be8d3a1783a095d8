"""Held-out questions judged by what most answers say: which of them judge, and by what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from asked import question

from edgetune.formats.bundle import Bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training.config import TrainConfig
from edgetune.tutor import agreed
from edgetune.tutor.agreed import nearness, with_agreed
from edgetune.tutor.answering import Said
from edgetune.tutor.options import TutorOptions
from edgetune.tutor.questions import Question, pool_of
from edgetune.tutor.setting import Setting


@pytest.fixture
def setting(bundle: Bundle, tmp_path: Path) -> Iterator[Setting]:
    labelled = [question(f"q {i}", f"{i + 100}") for i in range(20)]
    with closing(Tokenizer(bundle.gguf)) as tokenizer:
        yield Setting(bundle, tokenizer, pool_of(labelled, [], has_grader=False), None,
                      TutorOptions(), TrainConfig(threads=1, precision="exact"), tmp_path)


def test_questions_of_which_answers_agree_judge(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that was cut agrees with none. Labelled ones are numbers; here others may judge, too."""
    said = {"sure": [("1", True), ("1", True), ("2", True)], "unsure": [("1", True), ("2", True), ("3", True)],
            "cut": [("1", False), ("1", False), ("2", True), ("3", True), ("4", True)], "mute": [("", True)],
            "words": [("one", True), ("one", True), ("1", True)]}

    def answers(_: Setting, _number: int, questions: Sequence[Question], _pairs: object) -> list[list[Said]]:
        return [[Said(text, 1, ended) for text, ended in said[one.text]] for one in questions]
    monkeypatch.setattr(agreed, "answers_behind_rows", answers)
    asked = [question(text) for text in said]
    monkeypatch.setattr(Setting, "pairs", lambda *_: {})
    assert [(one.text, one.agreed) for one in with_agreed(setting, 1, asked, Path("published"))] == [
        ("sure", "1"), ("words", "one")]
    assert with_agreed(setting, 1, [], Path("published")) == []


def test_what_an_answer_has_in_common() -> None:
    assert nearness(question("q", agreed='{"a": 1, "b": 2}'), '{"a": 1, "b": 3, "c": 4}') == pytest.approx(2 / 5)
    assert nearness(question("q", "yes", "no"), "yes") == 1.0
    assert nearness(question("q", agreed="no"), "yes") == 0.0
