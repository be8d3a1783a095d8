"""The calibration of heads: its temperature and figures by others' code, and never by rows that the head learned."""

import json
import math

import numpy as np
import pytest
from typed_rows import KITCHEN, LAMP, LETTERS, QUESTIONS, STATES, answers_of, typed_rows

from edgetune.adapters.base import Artifact
from edgetune.adapters.store import read_artifact
from edgetune.data.decisions import prompt_of
from edgetune.errors import FormatError
from edgetune.formats.gguf import open_gguf
from edgetune.runs.train import train
from edgetune.serving.calibration import (
    BINS,
    COOLEST,
    NAME,
    WARMEST,
    Calibration,
    calibrations_of,
    cooled,
    temperature,
)
from edgetune.serving.encoder import Encoder
from edgetune.training import logistic

OPTIONS = {"rank": 4, "precision": "exact", "threads": 1, "max_length": 48, "steps": 1, "answers": False}


def drawn(n=400, k=4, sharpness=1.0, seed=0):
    """Log-probabilities [n, k], and labels [n] that are drawn from them after the logits were divided by sharpness."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.standard_normal((n, k))
    p = cooled(z, sharpness)
    labels = np.array([rng.choice(k, p=each) for each in p], np.int32)
    return np.log(cooled(z, 1.0)), labels, rng.uniform(0.1, 1, n).astype(np.float32)


@pytest.mark.parametrize(("sharpness", "weighted"), [(0.7, False), (1.0, True), (2.5, False), (3.5, True)])
def test_the_temperature_has_the_least_loss(sharpness, weighted):
    """Beside the normal density of log T around 0, by SciPy."""
    optimize = pytest.importorskip("scipy.optimize")
    stats = pytest.importorskip("scipy.stats")
    metrics = pytest.importorskip("sklearn.metrics")
    logp, labels, shares = drawn(sharpness=sharpness)
    if not weighted:
        shares[:] = 1

    def loss(t):
        lost = metrics.log_loss(labels, cooled(logp, t), sample_weight=shares, normalize=False, labels=range(4))
        return lost - stats.norm.logpdf(math.log(t), scale=0.5)

    best = optimize.minimize_scalar(loss, bounds=(COOLEST, WARMEST), method="bounded", options={"xatol": 1e-6})
    found = temperature(logp, labels, shares)
    assert found == pytest.approx(best.x, rel=1e-3)
    assert found == pytest.approx(sharpness, rel=0.25)


def test_the_temperature_stays_within_its_bounds():
    logp, _, shares = drawn(sharpness=1.0)
    right = logp.argmax(1).astype(np.int32)
    least = temperature(logp, right, shares)
    assert COOLEST <= least < 0.5  # all are right, which does not show that each one will be
    assert temperature(logp[:20], right[:20], shares[:20]) > least
    assert temperature(logp, logp.argmin(1).astype(np.int32), shares) == pytest.approx(WARMEST)
    assert (cooled(logp, COOLEST).argmax(1) == right).all()
    assert (cooled(logp, WARMEST).argmax(1) == right).all()


def ece(p, right):
    """Over bins of equally many answers, as scikit-learn's calibration_curve has them by quantiles."""
    order = np.argsort(p, kind="stable")
    return sum(abs(p[part].mean() - right[part].mean()) * len(part) for part in np.array_split(order, BINS)) / len(p)


def test_the_figures_are_those_of_the_cooled_probabilities():
    logp, labels, shares = drawn(sharpness=2.0)
    p = np.exp(logp).astype(np.float32)
    found = Calibration.of(p, labels, np.ones(len(labels), np.float32))
    q = cooled(np.log(p.astype(np.float64)), found.temperature)
    right = q.argmax(1) == labels
    assert found.rows == len(labels)
    assert found.accuracy == pytest.approx(right.mean())
    assert found.brier == pytest.approx(np.mean([(each ** 2).sum() - 2 * each[label] + 1
                                                 for each, label in zip(q, labels, strict=True)]))
    assert found.error == pytest.approx(ece(q.max(1), right))
    weighted = Calibration.of(p, labels, shares)
    assert weighted.sureness is None  # of parts of answers
    q = cooled(np.log(p.astype(np.float64)), weighted.temperature)
    assert weighted.accuracy == pytest.approx(np.average(q.argmax(1) == labels, weights=shares))


@pytest.mark.parametrize("n", [20, 100, 1000])
def test_the_error_by_chance_is_that_of_probabilities_that_hold(n):
    """By simulation: labels that are drawn from the probabilities have this error on average."""
    logp, labels, _ = drawn(n)
    found = Calibration.of(np.exp(logp).astype(np.float32), labels, np.ones(n, np.float32))
    p = cooled(logp, found.temperature).max(1)
    rng = np.random.default_rng(1)
    errors = [ece(p, rng.random(n) < p) for _ in range(2000)]
    assert found.by_chance == pytest.approx(np.mean(errors), abs=4 * np.std(errors) / math.sqrt(100))
    assert found.error < np.quantile(errors, 0.999)  # these hold
    far = Calibration.of(np.exp(logp).astype(np.float32), np.roll(labels, 1), np.ones(n, np.float32))
    assert far.accuracy < found.accuracy


def test_the_error_by_chance_falls_with_the_rows():
    found = [Calibration.of(np.exp(logp).astype(np.float32), labels, np.ones(n, np.float32)).by_chance
             for n in (20, 100, 1000) for logp, labels, _ in [drawn(n)]]
    assert found[0] > 1.5 * found[1] > 1.5 * found[2]


def test_of_few_rows_nothing_is_said():
    logp, labels, _ = drawn(19)
    found = Calibration.of(np.exp(logp).astype(np.float32), labels, np.ones(19, np.float32))
    assert (found.rows, found.sureness) == (19, None)
    assert 0.9 < found.temperature < 1.1  # they were drawn at 1
    assert Calibration.of(np.empty((0, 4), np.float32), labels[:0], np.empty(0, np.float32)) == Calibration(0)


def test_it_is_written_and_read_back():
    logp, labels, _ = drawn()
    found = [Calibration.of(np.exp(logp).astype(np.float32), labels, np.ones(400, np.float32)), Calibration(3)]
    facts = json.loads(json.dumps({NAME: [each.to_json() for each in found]}))
    assert calibrations_of(Artifact({}, facts=facts), "it") == tuple(found)
    assert calibrations_of(Artifact({}), "it") == ()
    for damaged in ([{}], [1], 5, [{**facts[NAME][0], "temperature": 0}], [{**facts[NAME][0], "rows": "many"}],
                    [{**facts[NAME][0], "sureness": {"rows": 1}}]):
        with pytest.raises(FormatError, match="it is damaged: its calibration is not readable"):
            calibrations_of(Artifact({}, facts={NAME: damaged}), "it")


# ---- which rows it is from -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(model):
    return model


def drawn_rows(count=40):
    """Rows whose answers have nothing to do with their states."""
    rng = np.random.default_rng(0)
    return [{"state": " ".join(rng.choice([*LETTERS], 12)), "questions": QUESTIONS,
             "expected": {"lamp": STATES[rng.integers(3)][1], "kitchen": bool(rng.integers(2))}} for _ in range(count)]


@pytest.mark.parametrize("times", [1, 4])
def test_with_answers_by_chance_nothing_is_known(encoder, tmp_path, monkeypatch, times):
    """The head learns most rows, and answers rows that it did not learn by chance; so, too, where each row is there
    several times: all of them are in the fold that is asked, and count once.
    """
    monkeypatch.setattr(logistic, "CHOICES", (1000.0,))  # it would learn nothing by the one that is chosen
    rows = drawn_rows()
    train(encoder, rows * times, tmp_path / "out", "none", **OPTIONS)
    reader = Encoder(open_gguf(encoder), threads=1, precision="exact").adapter(tmp_path / "out")
    for key, name, chance in ((LAMP, "lamp", 1 / 3), (KITCHEN, "kitchen", 1 / 2)):
        known = reader.known.calibrations[reader.learned.number(key)]
        reads = [reader.encoder.read(prompt_of(key, row["state"])) for row in rows]
        learned = np.mean([one.label == answers_of(row)[name]
                           for one, row in zip(reader.classify(reads), rows, strict=True)])
        assert known.rows == len(rows)
        assert learned > known.accuracy + 0.2  # so that figures of learned rows would show
        assert known.accuracy < chance + 0.2
        assert known.temperature > 1.5  # what it says of new rows is too sure
        assert known.sureness.surest < 0.9
        assert known.sureness.answered(0.95) == 0


def test_with_right_answers_much_is_known(encoder, tmp_path):
    train(encoder, typed_rows(90), tmp_path / "out", "none", **OPTIONS)
    found = calibrations_of(read_artifact(tmp_path / "out", open_gguf(encoder)), "")
    assert len(found) == len(QUESTIONS)
    assert all(known.accuracy > 0.8 and known.error < known.by_chance + 0.1 for known in found)
