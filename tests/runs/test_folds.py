"""edgetune.runs.folds: an encoder learns all of few rows, and its probabilities are those of other rows' trainings."""

import json
import math
import shutil

import numpy as np
import pytest
from encoders import WORDS, tiny_bert, vectors, write_encoder
from sklearn.linear_model import LogisticRegression

import edgetune
from edgetune.adapters.store import read_artifact, read_run
from edgetune.errors import Interrupted, UsageError
from edgetune.formats.gguf import open_gguf
from edgetune.objectives.labelling import HeadTargets
from edgetune.runs import folds
from edgetune.runs.train import resume, train
from edgetune.serving.calibration import calibrations_of
from edgetune.serving.classifier import Classifier
from edgetune.training import logistic
from edgetune.training.callbacks import RunCallbacks
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
    """The folder of heads alone."""
    out = tmp_path_factory.mktemp("heads") / "out"
    train(encoder, data, out, steps=1, **OPTIONS)
    return out


def probabilities(encoder, folder, texts):
    with Classifier(encoder, folder, threads=1, precision="exact") as served:
        return np.stack([found.probabilities for found in served.classify(texts)])


def regression(encoder, rows, texts):
    """Probabilities by scikit-learn on the encoder's vectors, with the penalty that is chosen for these rows."""
    known = vectors(encoder, [row["prompt"] for row in rows])
    labels, classes = np.unique([row["completion"] for row in rows], return_inverse=True)
    c = logistic.best_c(known, HeadTargets.of_all(classes.astype(np.int32)), len(labels))
    model = LogisticRegression(C=c, tol=1e-6, max_iter=5000).fit(known, [row["completion"] for row in rows])
    return model.predict_proba(vectors(encoder, texts))


@pytest.mark.dev
def test_heads_learn_all_rows_and_are_those_of_scikit_learn(encoder, heads):
    texts = ["turn on z", "kitchen off q", "light on a"]
    found = probabilities(encoder, heads, texts)
    [known] = calibrations_of(read_artifact(heads, open_gguf(encoder)), "")
    expected = regression(encoder, ROWS, texts) ** (1 / known.temperature)
    assert np.abs(found - expected / expected.sum(1, keepdims=True)).max() < 0.01
    record = read_run(heads)
    assert (record["held_out"], record["data"]["rows"], known.rows) == (None, 60, 60)
    assert record["folds"]["kept"] == folds.HEADS
    assert (record["folds"]["parts"], record["folds"]["rows"], record["answers"]["rows"]) == (5, 60, 60)


def test_the_figures_are_those_of_trainings_on_the_other_rows(encoder, data, tmp_path):
    """Each part is answered by a run of its own on the rows outside it, which nothing else tests."""
    found = train(encoder, data, tmp_path / "out", epochs=4, lr=3e-3, **OPTIONS)
    record = found.record
    assert record["folds"]["kept"] == folds.TRAINED
    labels = sorted({row["completion"] for row in ROWS})
    ordered = sorted(ROWS, key=lambda row: labels.index(row["completion"]))
    right = 0
    loss = 0.0
    [known] = calibrations_of(read_artifact(tmp_path / "out", open_gguf(encoder)), "")
    for number in range(5):
        held = ordered[number::5]
        out = tmp_path / f"part-{number}"
        train(encoder, [row for row in ROWS if row not in held], out, "none", epochs=4, lr=3e-3, **OPTIONS)
        p = probabilities(encoder, out, [row["prompt"] for row in held])
        p = p ** (1 / known.temperature)
        p /= p.sum(1, keepdims=True)
        classes = [labels.index(row["completion"]) for row in held]
        right += int((p.argmax(1) == classes).sum())
        loss -= float(np.log(p[np.arange(len(held)), classes]).sum())
    assert record["answers"]["wins"] == round(known.accuracy * 60) == right
    assert found.loss_after == pytest.approx(loss / 60, rel=0.02)
    assert found.loss_before == pytest.approx(math.log(6), rel=0.02)
    assert f"{right} of 60 held-out rows are answered exactly" in found.verdict


def test_the_better_of_heads_and_all_steps_is_kept(encoder, data, heads, tmp_path):
    """At a rate that ruins the encoder the heads alone are, with the same bytes as if nothing else was trained."""
    found = train(encoder, data, tmp_path / "out", epochs=4, lr=0.3, **OPTIONS)
    losses = found.record["folds"]["losses"]
    assert losses[folds.HEADS] < losses[folds.TRAINED]
    assert found.record["folds"]["kept"] == folds.HEADS
    assert (found.record["verdict"]["step"], found.record["steps"]) == (1, 40)
    texts = [row["prompt"] for row in ROWS]
    assert np.array_equal(probabilities(encoder, tmp_path / "out", texts), probabilities(encoder, heads, texts))
    assert "by the heads alone" in found.verdict


@pytest.mark.dev
def test_rows_of_one_text_are_in_one_part(encoder, tmp_path):
    """Labels by chance cannot be learned, though each text is there three times with its label."""
    rng = np.random.default_rng(0)
    texts = [f"{a} {b}" for a in LETTERS[:8] for b in LETTERS[8:12]]
    labelled = [{"prompt": text, "completion": str(rng.integers(2))} for text in texts]
    record = train(encoder, labelled * 3, tmp_path / "out", steps=1, **OPTIONS).record
    share = record["answers"]["after"]
    assert record["folds"]["rows"] >= folds.ENOUGH
    assert abs(share - 0.5) < 3 * math.sqrt(0.25 / (record["folds"]["rows"] / 3))


@pytest.mark.dev
@pytest.mark.parametrize("how", [{"eval": "none"}, {"eval": ROWS[:6]}, {"eval_every": 1}, {"start": "heads"}],
                         ids=["none", "rows", "measured", "start"])
def test_no_parts_test_where_rows_are_named_or_measured(encoder, data, heads, tmp_path, how):
    how = {**how, "start": heads} if "start" in how else how
    record = train(encoder, data, tmp_path / "out", how.pop("eval", None), steps=2, **{**OPTIONS, **how}).record
    assert folds.FACT not in record


def test_more_epochs_are_not_tested(encoder, heads, tmp_path):
    shutil.copytree(heads, tmp_path / "more")
    was = read_run(heads)[folds.FACT]
    record = resume(tmp_path / "more", more=1).record
    assert folds.FACT not in record
    assert "Not tested" in record["verdict"]["sentence"]
    assert was["rows"] == 60
    [known] = calibrations_of(read_artifact(tmp_path / "more", open_gguf(encoder)), "")
    assert known.rows == 0


@pytest.mark.parametrize("at", [1, 3])
def test_a_run_whose_tests_were_stopped_ends_in_the_same_adapter(encoder, data, heads, tmp_path, at):
    out = tmp_path / "out"
    seen = []
    calls = RunCallbacks(lambda event: seen.append(event.get("part")), lambda: at in seen)
    with pytest.raises(Interrupted, match="the tests of the adapter were stopped") as stopped:
        train(encoder, data, out, steps=1, callbacks=calls, **OPTIONS)
    assert "resume" in stopped.value.hint
    assert folds.FACT not in read_run(out)
    resume(out)
    assert (out / "adapter.gguf").read_bytes() == (heads / "adapter.gguf").read_bytes()
    assert read_run(out)[folds.FACT] == read_run(heads)[folds.FACT]
    assert (out / REPORT).exists()


@pytest.mark.dev
def test_answers_of_several_fields_are_tested_too(encoder, tmp_path):
    rows = [{"prompt": f"{a} {b} {c}", "completion": json.dumps({"what": a, "state": b, "where": c})}
            for c in LETTERS[:6] for a in ("turn", "light") for b in ("on", "off")]
    found = train(encoder, rows, tmp_path / "out", epochs=6, lr=3e-3, **OPTIONS)
    assert found.record["folds"]["kept"] == folds.TRAINED
    assert found.record["folds"]["rows"] == 24
    with edgetune.Classifier(encoder, tmp_path / "out", threads=1) as served:
        assert served.sureness.rows == 24


@pytest.mark.dev
def test_a_run_that_is_too_large_to_be_tested_says_so(encoder, data, tmp_path, monkeypatch):
    def none(*_):
        raise UsageError("training needs 9 MiB, the budget is 8 MiB", "raise it")

    monkeypatch.setattr(folds, "_of_part", none)
    found = train(encoder, data, tmp_path / "out", steps=1, **OPTIONS)
    assert found.record["answers_missing"] == "the adapter was not tested: training needs 9 MiB, the budget is 8 MiB"
    assert found.kind == "unmeasured"
