"""Encoders that learn labels and JSON: the head alone, then all; resumed, evaluated and served."""

import gc
import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run
from encoders import WORDS, tiny_bert, write_encoder
from json_lines import write_lines

from edgetune.adapters.base import OWN_ENGINE, Artifact
from edgetune.adapters.store import read_artifact, save_artifact
from edgetune.data.labelled import question_and_answer
from edgetune.errors import DataError, FormatError, Interrupted, UsageError
from edgetune.evaluation.labels import LEAST, grade_labels
from edgetune.formats.gguf import open_gguf
from edgetune.objectives.classify import Classify
from edgetune.objectives.tag import Tag
from edgetune.runs.train import train
from edgetune.serving.classifier import Classifier
from edgetune.serving.embedding import EncoderFile
from edgetune.training import logistic
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.trainer import Trainer

QUESTIONS = {"on": ["turn the light on", "light on", "kitchen light on", "turn on the kitchen light", "the light on"],
             "off": ["turn the light off", "light off", "kitchen light off", "turn off the light", "off the light"]}
LABELLED = [{"prompt": question, "completion": label} for label, each in QUESTIONS.items() for question in each * 3]
SLOTS = [{"prompt": f"turn {word} the {letter} light",
          "completion": json.dumps({"do": word, "slots": {"place": letter}})}
         for word in ("on", "off") for letter in "abcdefghijklm"]
FIELDS = [{"prompt": word, "completion": json.dumps({"a": word < "m", "b": word < "f", "c": word < "t", "d": word})}
          for word in "abcdefghijklmnopqrstuvwxyz"] * 2  # more labels than tokens
OPTIONS = {"rank": 4, "precision": "exact", "threads": 1, "lr": 3e-3}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.gguf", tiny_bert(), WORDS)


def right(encoder, adapter, rows):
    with Classifier(encoder, adapter, threads=1) as served:
        found = served.classify([row["prompt"] for row in rows])
    return [json.loads(one.label) == json.loads(row["completion"]) if one.label[0] == "{" else
            one.label == row["completion"] for one, row in zip(found, rows, strict=True)]


def test_the_fit_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.argmax(x[:, :3] + 0.2 * rng.standard_normal((60, 3)), 1).astype(np.int32)
    weights, bias = logistic.fit(x, y, 3)
    truth = linear_model.LogisticRegression(C=logistic.C, max_iter=1000, tol=1e-8).fit(x, y)
    expected = truth.predict_proba(x)
    z = x @ weights.T + bias
    p = np.exp(z - z.max(1, keepdims=True))
    assert np.abs(p / p.sum(1, keepdims=True) - expected).max() < 1e-3


@pytest.mark.parametrize(("rows", "objective"), [(LABELLED, None), (SLOTS, None), (FIELDS, None)],
                         ids=["labels", "json", "fields"])
def test_it_learns_and_is_served(encoder, tmp_path, rows, objective):
    result = train(encoder, rows, tmp_path / "out", rows, epochs=12, objective=objective, **OPTIONS)
    assert result.record["objective"]["name"] == ("classify" if rows is LABELLED else "tag")
    assert result.loss_after < 0.6 * result.loss_before
    assert result.exact_before == 0
    assert "(the heads alone: " in result.verdict or result.record["verdict"]["step"] == 1
    assert np.mean(right(encoder, tmp_path / "out", rows)) >= 0.8


def test_the_head_alone_is_one_step(encoder, tmp_path):
    """Its probabilities are those of a logistic regression on the encoder's vectors, which llama.cpp computes here."""
    train(encoder, LABELLED, tmp_path / "out", "none", steps=1, **OPTIONS)
    with Classifier(encoder, tmp_path / "out", threads=1) as served:
        assert served.labels == ("off", "on")
        questions = [row["prompt"] for row in LABELLED]
        with closing(EncoderFile(encoder, 1)) as file:
            vectors = np.empty((len(questions), file.embedder.width), np.float32)
            for _ in file.embedder.embed(vectors, [file.embedder.encode(question) for question in questions]):
                pass
        weights, bias = logistic.fit(vectors, np.array([row["completion"] == "on" for row in LABELLED], np.int32), 2)
        z = vectors @ weights.T + bias
        expected = 1 / (1 + np.exp(z[:, 0] - z[:, 1]))
        found = [one.probabilities[1] for one in served.classify(questions)]
    assert np.abs(found - expected).max() < 0.02  # llama.cpp's GELU is approximated


def test_a_closed_classifier_has_freed_everything(encoder, tmp_path):
    """The mapped file, its descriptor and the threads, without the garbage collector."""
    own = Path(shutil.copy(encoder, tmp_path / "own.gguf"))
    train(own, LABELLED, tmp_path / "out", "none", steps=1, **OPTIONS)
    gc.collect()
    gc.disable()
    try:
        before = held(own)
        with Classifier(own, tmp_path / "out", threads=2) as served:
            served.classify(["turn the light on"])
            during = held(own)
        assert held(own) == before < during
    finally:
        gc.enable()
    with pytest.raises(UsageError, match="this Classifier is closed"):
        served.classify(["turn the light on"])
    with pytest.raises(UsageError, match="this Classifier is closed"):
        next(served.generate("turn the light on"))


def held(path):
    """(parts of a file that this process maps, its descriptors of the file, its threads)"""
    here = Path("/proc/self")
    opened = [link for link in (here / "fd").iterdir() if link.exists() and link.resolve() == path]
    return ((here / "maps").read_text().count(str(path)), len(opened), len(list((here / "task").iterdir())))


def test_a_stopped_run_ends_with_the_same_bytes(encoder, tmp_path):
    steps = []
    stopping = RunCallbacks(lambda event: steps.append(event["event"] == "step"), lambda: sum(steps) == 3)
    options = {**OPTIONS, "steps": 6, "answers": False}
    train(encoder, LABELLED, tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        train(encoder, LABELLED, tmp_path / "stopped", callbacks=stopping, **options)
    train(encoder, LABELLED, tmp_path / "stopped", resume=True, **options)
    whole, stopped = ((tmp_path / name / "adapter.gguf").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped


def test_commands_take_an_encoder(encoder, tmp_path):
    rows = write_lines(tmp_path / "rows.jsonl", LABELLED)
    out = tmp_path / "out"
    assert json.loads(run("plan", encoder, rows, "--no-measure", "--json"))["fits"]
    said = json.loads(run("train", encoder, rows, "-o", out, "--eval", "none", "--steps", 1, "--threads", 1, "--json"))
    assert said["objective"] == {"name": "classify", "labels": ["off", "on"]}
    found = json.loads(run("eval", encoder, rows, "--adapter", out, "--show-wrong", 1, "--json"))
    assert (found["exact"] >= 0.8, found["exact_rows"]) == (True, len(LABELLED))
    assert run("generate", encoder, "turn the light on", "--adapter", out).strip() in ("on", "off")
    assert json.loads(run("info", out, "--json"))
    said = run("generate", encoder, "turn the light on", code=2)
    assert "answers with a head that was trained" in said


@pytest.mark.parametrize("rows", [LABELLED, SLOTS], ids=["labels", "json"])
def test_adapters_are_compared(encoder, tmp_path, rows):
    """The loss is that of training; rows that one of two adapters alone answers right decide between them."""
    data = write_lines(tmp_path / "rows.jsonl", rows)
    trained = train(encoder, rows, tmp_path / "good", rows, epochs=12, **OPTIONS)
    train(encoder, rows, tmp_path / "poor", "none", steps=1, **OPTIONS)
    found = json.loads(run("compare", encoder, data, "--adapter", tmp_path / "poor", "--adapter", tmp_path / "good",
                           "--threads", 1, "--json"))
    assert found["second"]["loss"] == pytest.approx(trained.loss_after, abs=1e-3)  # of products in another precision
    alone = [sum(b and not a for a, b in zip(*pair, strict=True)) for pair in (
        (right(encoder, tmp_path / name, rows) for name in names) for names in (("good", "poor"), ("poor", "good")))]
    assert [found["right"]["first_alone"], found["right"]["second_alone"]] == alone
    said = run("compare", encoder, data, "--adapter", tmp_path / "good", code=2)
    assert "answers with a head that was trained" in said


def test_an_answer_that_was_never_learned_costs_most(encoder, tmp_path):
    train(encoder, LABELLED, tmp_path / "out", "none", steps=1, **OPTIONS)
    with Classifier(encoder, tmp_path / "out", threads=1) as served:
        graded = grade_labels(served, [{"prompt": "light on", "completion": "dim"}, LABELLED[0]])
    assert graded.losses[0].mean == pytest.approx(-np.log(LEAST))
    assert 0 < graded.losses[1].mean < 3


def test_a_grader_scores_its_answers(encoder, tmp_path):
    data = write_lines(tmp_path / "rows.jsonl", LABELLED)
    out = tmp_path / "out"
    train(encoder, LABELLED, out, "none", steps=1, **OPTIONS)
    grader = tmp_path / "same.json"
    grader.write_text(json.dumps({"type": "string_check", "name": "same", "operation": "eq",
                                  "input": "{{sample.output_text}}", "reference": "{{item.completion}}"}))
    found = json.loads(run("grade", grader, data, "--model", encoder, "--adapter", out, "--threads", 1, "--json"))
    assert found["mean"] == pytest.approx(np.mean(right(encoder, out, LABELLED)))
    said = run("grade", grader, data, "--model", encoder, "--adapter", out, "--samples", 2, code=2)
    assert "--samples" in said


@pytest.mark.parametrize(("rows", "said"), [
    ([{"prompt": f"light {i}", "completion": f"text {i}"} for i in range(8)], "most answers occur once"),
    ([{"prompt": "light", "completion": "on"}] * 4, "all rows have the label 'on'"),
    ([{"text": "light"}], "without a question"),
    ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2}], "4 messages"),
    ([{"prompt": "light", "completion": "x" * 3000}], "3000 characters"),
])
def test_other_rows_are_refused(encoder, tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        train(encoder, rows, tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_an_objective_without_labels_is_refused(encoder):
    for objective in (Classify(), Tag()):
        with pytest.raises(UsageError, match=r"labels that .* learns are not known"):
            Trainer(encoder, objective=objective)


def test_an_adapter_without_labels_is_refused(encoder, tmp_path):
    train(encoder, LABELLED, tmp_path / "out", "none", steps=1, **OPTIONS)
    base = open_gguf(encoder)
    found = read_artifact(tmp_path / "out", base)
    save_artifact(tmp_path / "bare.gguf", Artifact(found.pairs), base)
    save_artifact(tmp_path / "less.gguf", replace(found, tensors={}, served_by=OWN_ENGINE), base)
    for name, said in (("bare", "has no labels"), ("less", "has no head for 2 classes")):
        with pytest.raises(FormatError, match=said):
            Classifier(encoder, tmp_path / f"{name}.gguf")


def test_the_question_is_the_users_message_alone():
    row = {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": " light on "},
                        {"role": "assistant", "content": "on\n"}]}
    assert question_and_answer(row) == ("light on", "on")
