"""Scores of typed questions: by an adapter's facts and by held-out rows, beside sums over its probabilities."""

import json

import numpy as np
import pytest
from commands import run
from encoder_daemon import write_adapter, write_tiny_encoder
from json_lines import write_lines
from scipy.stats import beta
from sure_worlds import WORLDS, Truth
from typed_rows import LAMP, QUESTIONS, typed_rows

from edgetune.data.decisions import read_question, readable
from edgetune.evaluation.question_scores import scores_in
from edgetune.serving.classifier import Classifier
from edgetune.serving.sureness import Sureness, at_least

NAMES = [question["instructions"] for question in QUESTIONS.values()]
LAST = "How far is it?"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny.gguf")


@pytest.fixture(scope="module")
def adapter(encoder, tmp_path_factory):
    return write_adapter(encoder, tmp_path_factory.mktemp("adapter") / "typed", typed_rows(120))


def by_name(scores):
    return {score["instructions"]: score for score in scores}


def test_a_bound_is_that_of_clopper_and_pearson():
    for found, n in ((0, 7), (1, 1), (7, 7), (3, 40), (63, 64), (900, 1000)):
        assert at_least(found, n) == pytest.approx(beta.ppf(0.05, found, n - found + 1) if found else 0, abs=1e-9)


@pytest.mark.dev
@pytest.mark.parametrize("name", ["calibrated, 80 % right", "two humps", "three probabilities", "all are right"])
def test_the_bound_of_a_share_holds_although_the_rows_chose_the_threshold(name):
    truth = Truth(name)
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(100):
        sureness = Sureness.of(*truth.draw(rng, 200))
        if share := sureness.answered(0.8):
            p = WORLDS[name][0](np.random.default_rng(1), 100_000)
            missed += np.mean(p >= sureness.threshold(0.8)) < at_least(round(200 * share), 200) - 0.005
    assert missed <= 10  # 5 are expected, 11 or more are seen in 1 of 87 tests


def test_facts_and_rows_give_the_same_kind_of_figures(encoder, adapter, tmp_path):
    facts = by_name(json.loads(run("models", "info", adapter, "--json"))["questions"])
    data = write_lines(tmp_path / "test.jsonl", typed_rows(60, first=150))
    found = by_name(json.loads(run("eval", encoder, data, "--adapter", adapter, "--json"))["questions"])
    assert sorted(facts) == sorted(found) == sorted(NAMES)
    for name, score in found.items():
        assert (score["type"], score["rows"], facts[name]["rows"]) == (facts[name]["type"], 60, 120)
        assert score["accuracy"] > 0.7
        known, alone = ({each["error"]: each for each in of_one["decided_alone"]} for of_one in (facts[name], score))
        assert known[0.01]["missing"] == alone[0.01]["missing"] == "120 held-out rows, at least 321 needed for 0.99"
        assert bool(known[0.05]["missing"]) == bool(alone[0.05]["missing"])
    known, alone = facts[LAST]["decided_alone"][0], found[LAST]["decided_alone"][0]
    assert known["wrong"] is None
    assert 0 < known["at_least"] < known["share"] < 1
    assert 0 < alone["at_least"] < alone["share"] < 1
    assert alone["wrong"] <= 6


def test_scores_are_sums_over_probabilities(encoder, adapter, tmp_path):
    """Some answers are of labels that were never learned, some rows answer one question, one is a conversation."""
    rows = typed_rows(40, first=200)
    for row in rows[:10]:
        row["expected"] = {"lamp": "stays"}
    for row in rows[10:12]:
        question = QUESTIONS["lamp"] | {"criteria": {"goes on": None, "is dimmed": None}}
        row |= {"questions": {"lamp": question}, "expected": {"lamp": "is dimmed"}}
    single = {"messages": [{"role": "system", "content": LAMP}, {"role": "user", "content": "turn on the light"},
                           {"role": "assistant", "content": "goes on"}]}
    data = write_lines(tmp_path / "test.jsonl", [*rows, single])
    found = by_name(json.loads(run("eval", encoder, data, "--adapter", adapter, "--json"))["questions"])
    with Classifier(encoder, adapter, threads=1) as served:
        options = served.learned.options_of(LAMP)
        p = np.array([each.probabilities for each in served.classify(
            [*(row["state"] for row in rows), "turn on the light"])], np.float64)
        p = p[:, options.first:options.first + 3]
        limit = served.known.calibrations[options.head].sureness.threshold(0.95)
    rights = [*(row["expected"]["lamp"] for row in rows), "goes on"]
    right = np.array([options.labels.index(label) if label in options.labels else -1 for label in rights])
    brier = [sum((share - (label == number)) ** 2 for number, share in enumerate(each)) + (label < 0)
             for each, label in zip(p, right, strict=True)]
    is_right = p.argmax(1) == right
    score = found["What happens to the lamp?"]
    assert score["rows"] == 41
    assert score["accuracy"] == pytest.approx(is_right.mean())
    assert score["brier"] == pytest.approx(np.mean(brier), abs=1e-6)
    sure = p.max(1) >= limit
    alone = score["decided_alone"][0]
    assert (alone["error"], alone["share"]) == (0.05, pytest.approx(sure.mean()))
    assert alone["wrong"] == np.sum(sure & ~is_right) > 0
    assert found[LAST]["rows"] == 28


def test_the_table_is_small_and_training_ends_with_it(encoder, adapter, tmp_path):
    data = write_lines(tmp_path / "rows.jsonl", typed_rows(30))
    said = run("train", encoder, data, "-o", tmp_path / "out", "--eval", "none", "--steps", 1, "--threads", 1)
    for word in " ".join(NAMES).split():
        assert word in said
    assert "none decided alone at <= 5% error: 30 held-out rows, at least 63 needed for 0.95" in said
    assert f"try: edgetune decide {encoder} TEXT --adapter {tmp_path / 'out'}" in said
    again = json.loads(run("train", encoder, data, "-o", tmp_path / "json", "--eval", "none", "--steps", 1, "--threads",
                           1, "--json"))
    assert [score["rows"] for score in again["questions"]] == [30, 30, 30]
    said = run("eval", encoder, data, "--adapter", adapter, "--show-wrong", 3)
    assert "decided alone at <= 1% error" in said


def test_labels_are_a_question_without_a_name_and_other_adapters_have_none(encoder, tmp_path):
    rows = [{"prompt": row["state"], "completion": row["expected"]["lamp"]} for row in typed_rows(30)]
    labels = write_adapter(encoder, tmp_path / "labels", rows)
    [score] = scores_in(labels)
    assert (score.question.type, score.question.instructions, score.known.rows) == ("choice", "answer", 30)
    assert score.question.labels == ("goes off", "goes on", "stays")
    forms = [{**row, "completion": json.dumps({"lamp": row["completion"]})} for row in rows]
    assert scores_in(write_adapter(encoder, tmp_path / "forms", forms)) == []


def test_answers_to_several_questions_are_shown_in_their_words():
    keys = [read_question(name, question).key for name, question in QUESTIONS.items()]
    answer = json.dumps(dict(zip(keys, ("goes on", "true", {"1": 0.4, "2": 0.6}), strict=True)))
    assert json.loads(readable(answer)) == dict(zip(NAMES, ("goes on", "true", "far"), strict=True))
    twice = json.dumps({read_question("a", {"type": type, "instructions": "Is it?", "criteria": criteria}).key: label
                        for type, criteria, label in (("noul", None, "true"), ("score", ["no", "yes"], "0"))})
    assert [*json.loads(readable(twice)).values()] == ["true", "no"]
    assert [readable(text) for text in ("on", '{"a": 1}', "{", "")] == ["on", '{"a": 1}', "{", ""]
