"""edgetune.runs.held_out: few held-out rows are learned in the end, as by scikit-learn on llama.cpp's vectors."""

import json
import shutil

import numpy as np
import pytest
from encoders import WORDS, tiny_bert, vectors, write_encoder
from sklearn.linear_model import LogisticRegression

import edgetune
from edgetune.adapters.store import read_artifact, read_beside, read_run
from edgetune.formats.gguf import open_gguf
from edgetune.objectives.labelling import HeadTargets
from edgetune.runs.held_out import LEARNED, forget
from edgetune.runs.train import resume, train
from edgetune.serving.calibration import calibrations_of
from edgetune.serving.classifier import Classifier
from edgetune.training import logistic
from edgetune.training.metrics import REPORT

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ROWS = [{"prompt": f"{a} {b} {c}", "completion": f"{a} {b}"}
        for c in LETTERS[:10] for a in ("turn", "light", "kitchen") for b in ("on", "off")]
OPTIONS = {"rank": 4, "precision": "exact", "threads": 1}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.gguf", tiny_bert(), WORDS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def heads(encoder, data, tmp_path_factory):
    """The folder of heads alone, by the defaults of held-out rows."""
    out = tmp_path_factory.mktemp("heads") / "out"
    train(encoder, data, out, steps=1, **OPTIONS)
    return out


def probabilities(encoder, folder, texts):
    with Classifier(encoder, folder, threads=1, precision="exact") as served:
        return np.stack([found.probabilities for found in served.classify(texts)])


def regression(encoder, rows, texts):
    """Probabilities by scikit-learn."""
    known = vectors(encoder, [row["prompt"] for row in rows])
    return fitted_to(known, rows).predict_proba(vectors(encoder, texts))


def fitted_to(known, rows):
    """scikit-learn's regression on the vectors of rows, with the penalty that is chosen for them."""
    labels, classes = np.unique([row["completion"] for row in rows], return_inverse=True)
    c = logistic.best_c(known, HeadTargets.of_all(classes.astype(np.int32)), len(labels))
    return LogisticRegression(C=c, tol=1e-6, max_iter=5000).fit(known, [row["completion"] for row in rows])


def head(folder, encoder):
    return read_artifact(folder, open_gguf(encoder)).tensors["head.classes"]


@pytest.mark.dev
def test_heads_learn_all_rows_after_the_held_out_ones_measured_them(encoder, heads):
    texts = ["turn on z", "kitchen off q", "light on a"]
    found = probabilities(encoder, heads, texts)
    [known] = calibrations_of(read_artifact(heads, open_gguf(encoder)), "")
    expected = regression(encoder, ROWS, texts) ** (1 / known.temperature)
    assert np.abs(found - expected / expected.sum(1, keepdims=True)).max() < 0.01
    record = read_run(heads)
    assert record[LEARNED] == record["held_out"]["rows"] == 6
    assert "learned the 6 held-out rows too: the figures are from before" in record["verdict"]["sentence"]
    assert record["answers"]["rows"] == 6


def test_heads_are_fitted_to_the_vectors_of_the_trained_encoder(encoder, data, tmp_path):
    record = train(encoder, data, tmp_path / "out", epochs=6, lr=3e-3, **OPTIONS).record
    assert (record["verdict"]["step"] > 1, record[LEARNED]) == (True, 6)
    base = open_gguf(encoder)
    was = read_artifact(tmp_path / "out", base)
    assert any(pair.b.any() for pair in was.pairs.values())
    found = edgetune.vectors(encoder, [row["prompt"] for row in ROWS], tmp_path / "out", threads=1)
    fitted = fitted_to(found, ROWS)
    said = probabilities(encoder, tmp_path / "out", [row["prompt"] for row in ROWS])
    assert np.abs(said - fitted.predict_proba(found)).max() < 0.01
    forget(base, tmp_path / "out")
    now = read_artifact(tmp_path / "out", base)
    assert all(np.array_equal(pair.b, now.pairs[name].b) for name, pair in was.pairs.items())
    assert not np.array_equal(was.tensors["head.classes"], now.tensors["head.classes"])


@pytest.mark.dev
@pytest.mark.parametrize("given", ["none", "rows"])
def test_named_rows_are_not_learned(encoder, data, tmp_path, given):
    record = train(encoder, data, tmp_path / "out", "none" if given == "none" else ROWS[:6], steps=1, **OPTIONS).record
    assert LEARNED not in record
    assert read_beside(tmp_path / "out") == {}


@pytest.mark.dev
def test_held_out_rows_that_say_when_an_answer_is_sure_are_not_learned(encoder, tmp_path):
    rows = [{"prompt": f"{a} {b} {c} {d}", "completion": f"{a} {b}"} for c in LETTERS[:6] for d in LETTERS[:6]
            for a in ("turn", "light", "kitchen") for b in ("on", "off")]
    record = train(encoder, rows, tmp_path / "out", steps=1, **OPTIONS).record
    assert record["held_out"]["rows"] >= 20
    assert LEARNED not in record


def test_more_epochs_begin_from_the_heads_that_were_measured(encoder, heads, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(heads, out)
    measured = read_beside(out)["head.classes"]
    assert not np.array_equal(head(out, encoder), measured)
    forget(open_gguf(encoder), out)
    assert np.array_equal(head(out, encoder), measured)
    assert (read_beside(out), LEARNED in read_run(out)) == ({}, False)
    shutil.copytree(heads, tmp_path / "more")
    record = resume(tmp_path / "more", more=1, lr=1e-9, allow_changed=["lr"]).record
    found = read_beside(tmp_path / "more").get("head.classes", head(tmp_path / "more", encoder))
    assert np.abs(found - measured).max() < 1e-5
    assert record["held_out"]["history"][0] == read_run(heads)["held_out"]["history"][0]


@pytest.mark.parametrize("is_written", [True, False], ids=["after the adapter", "before"])
def test_a_run_killed_before_its_heads_learned_them_ends_in_the_same_adapter(encoder, heads, tmp_path, is_written):
    out = tmp_path / "out"
    shutil.copytree(heads, out)
    if not is_written:
        forget(open_gguf(encoder), out)
    record = {name: value for name, value in read_run(out).items() if name != LEARNED}
    (out / "run.json").write_text(json.dumps(record))
    (out / REPORT).unlink()
    resume(out)
    assert (out / "adapter.gguf").read_bytes() == (heads / "adapter.gguf").read_bytes()
    assert np.array_equal(read_beside(out)["head.classes"], read_beside(heads)["head.classes"])
    assert read_run(out)[LEARNED] == 6
