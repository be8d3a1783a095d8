"""edgetune.training.logistic: the penalty that cross-validation chooses, beside scikit-learn's."""

import numpy as np
import pytest

from edgetune.objectives.labelling import HeadTargets
from edgetune.training import logistic

linear_model = pytest.importorskip("sklearn.linear_model")


def drawn(noise, n=120, k=3):
    """Vectors of length 1 and classes; noise: share of the classes that are drawn at random."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((k, 16))
    classes = rng.integers(k, size=n).astype(np.int32)
    x = centres[classes] + 0.7 * rng.standard_normal((n, 16))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32), np.where(rng.random(n) < noise, rng.integers(k, size=n), classes).astype(np.int32)


@pytest.mark.parametrize("noise", [0.0, 0.6])
def test_the_penalty_is_that_of_the_least_loss_on_rows_that_were_not_learned(noise):
    x, y = drawn(noise)
    targets = HeadTargets.of_all(y)
    fold = logistic._parts(x, targets)
    losses = []
    for c in logistic.CHOICES:
        lost = 0.0
        for number in range(logistic.FOLDS):
            learned = linear_model.LogisticRegression(C=c, tol=1e-6, max_iter=5000).fit(x[fold != number],
                                                                                       y[fold != number])
            p = learned.predict_proba(x[fold == number])
            lost -= np.log(p[np.arange(len(p)), y[fold == number]]).sum()
        losses.append(lost)
    assert logistic.best_c(x, targets, 3) == logistic.CHOICES[int(np.argmin(losses))]


def test_noisy_labels_choose_a_stronger_penalty():
    chosen = [logistic.best_c(x, HeadTargets.of_all(y), 3) for x, y in map(drawn, (0.0, 0.6))]
    assert chosen[0] > chosen[1]


def test_labels_of_one_row_do_not_choose():
    """No other row could teach them: alone they leave the usual penalty, and beside others they change none."""
    x, y = drawn(0.0)
    alone = HeadTargets.of_all(np.arange(20, dtype=np.int32))
    assert logistic.best_c(x[:20], alone, 20) == logistic.C
    more = np.concatenate([x, np.eye(16, dtype=np.float32)[:5]])
    mixed = HeadTargets.of_all(np.concatenate([y, np.arange(3, 8, dtype=np.int32)]))
    assert logistic.best_c(more, mixed, 8) == logistic.best_c(x, HeadTargets.of_all(y), 3)


def test_targets_of_one_vector_are_in_one_part():
    x, y = drawn(0.0, 40)
    twice = HeadTargets(np.repeat(np.arange(40), 2), np.repeat(y, 2), np.ones(80, np.float32))
    fold = logistic._parts(x, twice)
    assert (fold[::2] == fold[1::2]).all()
    assert {*fold} == {*range(logistic.FOLDS)}
