"""edgetune.serving.neighbours: the nearest by plain loops, through additions and removals; the two limits."""

import numpy as np
import pytest

from edgetune.serving.neighbours import LEAST, Neighbours, limit_of_learned, limit_of_repeats, mean_of_greatest


def unit(rng, count, width=6):
    found = rng.standard_normal((count, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("base", [0.0, 0.3])
def test_the_nearest_are_found_through_additions_and_removals(base):
    rng = np.random.default_rng(0)
    near = Neighbours(base=base)
    expected = []
    for number, vector in enumerate(unit(rng, 40)):
        near.add(vector)
        expected.append(vector)
        if number % 3 == 2:
            gone = int(rng.integers(len(expected)))
            near.remove(gone)
            del expected[gone]
    assert len(near) == len(expected)
    np.testing.assert_array_equal(near.vectors, expected)
    question = unit(rng, 1)[0]
    likeness = [(float(question.astype(float) @ each) - base) / (1 - base) for each in expected]
    order = sorted(range(len(expected)), key=lambda i: -likeness[i])
    for count in (None, 1, 5):
        numbers, found = near.nearest(question, count)
        assert numbers.tolist() == order[:count]
        assert found == pytest.approx([likeness[i] for i in order[:count]], abs=1e-6)
    several = unit(rng, 3)
    assert near.likeness(several)[1] == pytest.approx(near.likeness(several[1]), abs=1e-6)


def test_of_equally_near_ones_the_earlier_is_first():
    near = Neighbours(np.eye(4, dtype=np.float32)[[2, 0, 1, 0]])
    assert near.nearest(np.eye(4, dtype=np.float32)[0])[0].tolist() == [1, 3, 0, 2]


def test_likeness_is_the_mean_of_the_nearest():
    likeness = np.array([[0.1, 0.9, 0.5], [0.2, 0.2, 0.8]], np.float32)
    assert mean_of_greatest(likeness, 1) == pytest.approx([0.9, 0.8])
    assert mean_of_greatest(likeness, 2) == pytest.approx([0.7, 0.5])


def test_the_limit_of_learned_ones_lets_all_but_two_in_a_hundred_pass():
    likeness = np.random.default_rng(0).permutation(np.linspace(0, 1, 200, dtype=np.float32))
    assert np.mean(likeness >= limit_of_learned(likeness)) == 0.98


def test_wrong_repeats_raise_the_limit_as_far_as_is_needed():
    assert limit_of_repeats([]) == LEAST
    assert limit_of_repeats([(0.7, False)]) == LEAST  # one of as many as SURE
    assert 0.65 < limit_of_repeats([(0.7, False), (0.65, False)]) < 0.6501  # then one is left
    many = [(0.62, False)] * 20 + [(0.9, True)] * 50
    assert 0.62 < limit_of_repeats(many) < 0.63
    assert limit_of_repeats([(1.0, False)] * 30) > 1
    assert limit_of_repeats([(0.7, True)] * 100 + [(0.7, False)]) == LEAST
