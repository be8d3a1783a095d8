"""edgetune.parts.tutor.rounds.answers: an encoder answers prompts, and the answers to learn are chosen."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from asked import question
from encoders import WORDS, tiny_bert, write_encoder
from json_lines import write_lines
from sklearn import linear_model
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from edgetune.errors import DataError, MismatchError, UnsupportedError, UsageError
from edgetune.evaluation.graders.base import Grade, read_grader
from edgetune.objectives.labelling import HeadTargets
from edgetune.parts.tutor.rounds.answers import (
    AGREED,
    NEVER,
    VERIFIED,
    ModelAnswer,
    choose_agreed,
    choose_graded,
    collapse,
)
from edgetune.parts.tutor.rounds.folder import Round
from edgetune.parts.tutor.rounds.options import TutorOptions
from edgetune.parts.tutor.rounds.results import Chosen, DrawnAnswers, Labels, Published, Trained, TrainingRow
from edgetune.parts.tutor.rounds.teach import TutorFiles, teach
from edgetune.training import logistic
from edgetune.training.config import TrainConfig

ANSWERS = {"kitchen": "aa", "light": "bb"}
CONFIG = TrainConfig(rank=4, lr=2e-2, epochs=8.0, batch_size=4, max_length=128, threads=1, precision="exact", seed=3)


def rows(pattern: str, letters: str, **more: Any):
    return [{"prompt": pattern.format(word=word, letter=letter), **({"completion": answer} if more else {})}
            for letter in letters for word, answer in ANSWERS.items()]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.gguf", tiny_bert(), WORDS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    keep = folder / "keep.jsonl"
    keep.write_text('{"text": "Cats sleep for most of the day."}\n')
    labelled = rows("{word} {word} {letter}", "abcdefghijklmnopqrst", labelled=True)
    return TutorFiles(write_lines(folder / "prompts.jsonl", rows("{word} {word} {letter}", "uvwxyz")),
                 write_lines(folder / "labelled.jsonl", labelled), keep=keep)


def options(encoder):
    return TutorOptions(judge=str(encoder), max_tokens=6, questions=12, min_rows=4, canary_rise=1e3, max_kl=1e3)


@pytest.fixture(scope="module")
def done(bundle, encoder, files, tmp_path_factory):
    out = tmp_path_factory.mktemp("rounds") / "out"
    teach(bundle, files, out, options=options(encoder), config=CONFIG)
    return out


def read(round, kind):
    found = round.read(kind)
    assert found
    return found


@pytest.mark.dev
def test_it_answers_in_place_of_the_model(done):
    """Every prompt once, without a token drawn; it was fitted to rows of like form, so it is mostly right."""
    drawn = read(Round(done, 1), DrawnAnswers)
    assert drawn.facts["drawn"] == 0
    assert drawn.facts["answers"] == len(drawn.prompts) == 12
    assert {len(one.answers) for one in drawn.prompts} == {1}
    assert sum(ANSWERS[one.asked.split()[0]] == one.answers[0].text for one in drawn.prompts) >= 10


def test_what_it_is_sure_of_is_learned_and_nothing_else(done):
    round = Round(done, 1)
    drawn = read(round, DrawnAnswers)
    answers = {one.key: one.answers[0] for one in drawn.prompts}
    sure = {key for key, one in answers.items() if one.probability >= drawn.sure_from}
    assert drawn.sure_from < NEVER
    assert sure == {one.key for one in read(round, Chosen).choices if one.label} != set()
    learned = {row.key: row for row in read(round, Trained).rows if row.source != "labelled"}
    assert learned.keys() == sure
    assert {row.source for row in learned.values()} == {"judged"}
    assert not any(row.is_verified for row in learned.values())


def test_after_the_gate_it_learns_the_held_out_rows_and_answers_again(done):
    """The labelled rows alone are learned once: before the gate, which compares them."""
    round = Round(done, 1)
    assert round.read(Labels)
    assert not round.refit.read(Labels)
    assert len(read(round.refit, Trained).rows) > len(read(round, Trained).rows)
    first, again = (read(part, DrawnAnswers).prompts[0].answers[0].probability for part in (round, round.refit))
    assert first != again
    assert read(round, Published).adapter == "rounds/001/refit/train"


@pytest.mark.dev
def test_the_same_call_continues_and_another_judge_is_refused(bundle, encoder, files, done, tmp_path):
    before = (done / "adapter.gguf").read_bytes()
    teach(bundle, files, done, options=options(encoder), config=CONFIG)
    assert (done / "adapter.gguf").read_bytes() == before
    other = write_encoder(tmp_path / "other.gguf", tiny_bert(), WORDS, pooling="first")
    for judge in (str(other), ""):
        with pytest.raises(MismatchError, match="begun with another judge"):
            teach(bundle, files, done, options=replace(options(encoder), judge=judge), config=CONFIG)


def test_of_too_few_rows_it_is_never_sure(bundle, encoder, files, tmp_path):
    """The round says so, and learns the labelled rows alone."""
    few = write_lines(tmp_path / "few.jsonl", rows("{word} {word} {letter}", "abcdefgh", labelled=True))
    found = teach(bundle, replace(files, labelled=few), tmp_path / "out", options=options(encoder), config=CONFIG)
    assert "the answers to 0 of 12 prompts are sure" in found.stopped
    round = Round(tmp_path / "out", 1)
    assert read(round, DrawnAnswers).sure_from == NEVER
    assert round.read(Labels)
    assert not round.read(Trained)


def test_what_is_refused(bundle, encoder, files, tmp_path):
    with pytest.raises(UsageError, match="both a grader and the judge"):
        teach(bundle, files, tmp_path / "a", grader=read_grader({"type": "regex", "name": "any", "pattern": "."}),
              options=options(encoder))
    with pytest.raises(UnsupportedError, match="no encoder"):
        teach(bundle, files, tmp_path / "b", options=options(bundle.path))
    texts = [{"prompt": f"say {i}", "completion": f"text {i}"} for i in range(40)]
    with pytest.raises(DataError, match=r"most labelled answers occur once.*--judge"):
        teach(bundle, replace(files, labelled=write_lines(tmp_path / "texts.jsonl", texts)), tmp_path / "c",
              options=options(encoder), config=CONFIG)
    assert not (tmp_path / "c").exists()


# ---- the head and its probabilities ----


def test_probabilities_out_of_fold_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.argmax(x[:, :3] + 0.2 * rng.standard_normal((60, 3)), 1).astype(np.int32)
    seen = dict.fromkeys(range(3), 0)
    folds = []
    for label in y.tolist():
        folds.append((seen[label] + label) % logistic.FOLDS)
        seen[label] += 1
    truth = cross_val_predict(linear_model.LogisticRegression(C=logistic.C, max_iter=1000, tol=1e-8), x, y,
                              cv=PredefinedSplit(folds), method="predict_proba")
    assert np.abs(logistic.out_of_fold(x, HeadTargets.of_all(y), 3) - truth).max() < 1e-3
    head = logistic.fit(x, HeadTargets.of_all(y), 3)
    whole = linear_model.LogisticRegression(C=logistic.C, max_iter=1000, tol=1e-8).fit(x, y).predict_proba(x)
    assert np.abs(logistic.probabilities(x, *head) - whole).max() < 1e-3


def answers(*texts: str):
    return [ModelAnswer(text, 3, True) for text in texts]


def test_four_of_six_agree():
    found = choose_agreed(question(), answers("a", "b", "a", "a", "c", "a"), 0.65)
    assert (found.label, found.source, found.rate) == ("a", AGREED, pytest.approx(4 / 6))
    assert found.right == [True, False, True, True, False, True]
    assert choose_agreed(question(), answers("a", "b", "a", "a", "c", "c"), 0.65).label == ""


def test_answers_are_compared_as_json_and_numbers():
    found = choose_agreed(question(), answers('{"a": 1, "b": 2}', '{"b":2,"a":1}', '{"a":1,"b":2.0}', "no"), 0.65)
    assert (found.label, found.rate) == ('{"a": 1, "b": 2}', 0.75)
    assert choose_agreed(question(), answers("1,234", "1234.0", "x"), 0.6).rate == pytest.approx(2 / 3)


def test_a_cut_answer_says_nothing_and_counts():
    cut = [ModelAnswer("a", 3, False)] * 4
    assert choose_agreed(question(), [*cut, *answers("a", "a")], 0.65).label == ""
    assert choose_agreed(question(), cut, 0.0).label == ""
    assert choose_agreed(question(), answers("", " "), 0.0).label == ""
    assert choose_agreed(question(), answers("a", "b"), 0.0).label == ""  # none is most


def test_of_passing_answers_the_most_frequent_is_learned():
    grades = [Grade(1.0), Grade(0.5), Grade(1.0), Grade(1.0)]
    found = choose_graded(question(), answers("2", "9", "3", "3.0"), grades, 1.0, VERIFIED)
    assert (found.label, found.rate, found.source) == ("3", 0.75, VERIFIED)
    assert choose_graded(question(), answers("2", "9"), [Grade(0.0), Grade(0.9)], 1.0, VERIFIED).label == ""
    assert choose_graded(question(), answers("2"), [Grade(1.0, applicable=False)], 1.0, VERIFIED).label == ""


@pytest.mark.parametrize(("source", "is_verified"), [("labelled", True), ("verified", True), ("judged", False),
                                                     ("agreed", False)])
def test_agreement_and_the_models_own_judgment_verify_nothing(source, is_verified):
    assert TrainingRow("k", "x", source).is_verified == is_verified


def test_one_answer_to_everything_is_a_collapse():
    same = [answers("ok", "ok")] * 10
    assert collapse(same, ["a", "b"]) == "20 of 20 answers to 10 prompts are one and the same"
    assert collapse(same, ["a", "a"]) == ""  # the right answers are one and the same too
    assert collapse(same[:7], ["a", "b"]) == ""
    assert collapse([*same[:8], *[answers("x", "y")] * 2], ["a", "b"]) == ""
