"""edgetune.serving.tasks: weights against scikit-learn's ridge regression, likeness against loops."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from edgetune.serving.neighbours import UNLIKE
from edgetune.serving.tasks import NEAREST, RIDGE, LearnedTask, Tasks, _fitted


def unit(rng, centre, count, spread=0.2):
    found = centre + spread * rng.standard_normal((count, len(centre)))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def vectors():
    """Questions of three tasks around the first three axes; of different numbers."""
    rng = np.random.default_rng(0)
    return {name: unit(rng, np.eye(12)[i], count) for i, (name, count) in enumerate(
        (("lamps", 60), ("music", 9), ("sums", 25)))}


def test_weights_are_those_of_ridge_regression(vectors):
    tasks = list(vectors.values())
    x = np.concatenate(tasks).astype(np.float64)
    counts = [len(own) for own in tasks]
    weights = np.concatenate([np.full(count, sum(counts) / 3 / count) for count in counts])
    y = np.repeat(np.eye(3), counts, axis=0)
    truth = Ridge(RIDGE, fit_intercept=False).fit(np.hstack([x, np.ones((len(x), 1))]), y, weights)
    np.testing.assert_allclose(_fitted(tasks), truth.coef_.T, atol=1e-8)


def test_the_limit_is_what_all_but_the_least_alike_have(vectors):
    own = vectors["lamps"].astype(np.float64)
    found = []
    for i, question in enumerate(own):
        cosines = sorted(float(question @ other) for j, other in enumerate(own) if j != i)
        found.append(sum(cosines[-NEAREST:]) / NEAREST)
    task = LearnedTask.of(vectors["lamps"])
    assert task.limit == pytest.approx(sorted(found)[int(UNLIKE * len(own))], abs=1e-6)


def test_questions_find_their_task_or_none(vectors):
    tasks = Tasks(vectors)
    rng = np.random.default_rng(1)
    for i, name in enumerate(vectors):
        found = [tasks.of(question) for question in unit(rng, np.eye(12)[i], 50, spread=0.1)]
        assert found.count(name) >= 48
        assert set(found) <= {name, None}
    assert {tasks.of(question) for question in unit(rng, np.eye(12)[5], 50)} == {None}


def test_one_task_takes_what_is_like_it(vectors):
    tasks = Tasks({"lamps": vectors["lamps"]})
    assert tasks.of(np.eye(12, dtype=np.float32)[0]) == "lamps"
    assert tasks.of(np.eye(12, dtype=np.float32)[5]) is None
