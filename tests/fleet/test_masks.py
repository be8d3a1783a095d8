"""Sums in secret: they are the sum, with devices that drop out; the aggregator sees noise; liars are named."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edgetune.errors import FormatError, MismatchError, NumericsError, UsageError
from edgetune.fleet.secret.fixed_point import FixedPoint
from edgetune.fleet.secret.masks import Circle, Member, Revealed, least_threshold, total
from edgetune.fleet.secret.shares import divide, join

ROUND = bytes(range(32))


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Random bytes that are the same in each run, so that no test of noise fails by chance."""
    monkeypatch.setattr("secrets.token_bytes", np.random.default_rng(5).bytes)


def circle_of(n, threshold=0):
    keys = [X25519PrivateKey.from_private_bytes(np.random.default_rng(i).bytes(32)) for i in range(n)]
    circle = Circle(tuple(key.public_key().public_bytes_raw() for key in keys), ROUND, threshold or least_threshold(n))
    return circle, [Member(circle, key) for key in keys]


def vectors(n, size=50, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, (n, size), dtype=np.uint32)


def revealed_by(members, masked, numbers):
    return {i: members[i].reveal({u: sent.sealed[i] for u, sent in masked.items()}) for i in numbers}


@examples(40)
@given(st.data())
def test_any_threshold_of_shares_gives_the_secret(data):
    holders = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, holders))
    secrets = np.frombuffer(data.draw(st.binary(min_size=8, max_size=8)), np.uint8).reshape(2, 4)
    shares = divide(secrets, holders, threshold)
    chosen = data.draw(st.permutations(range(holders)))[:threshold]
    np.testing.assert_array_equal(join({i: shares[i] for i in chosen}), secrets)


def test_shares_are_those_of_a_polynomial_by_hand():
    """1 + 2 x in the field of AES: at x = 3 it is 1 + 2 * 3 = 7, at x = 0x80 it is 1 + 0x1B = 0x1A."""
    from edgetune.fleet.secret.shares import _times
    one = np.array([1, 2, 0x80, 0], np.uint8)
    assert _times(one, 3).tolist() == [3, 6, 0x9B, 0]
    assert (_times(np.array([0x80], np.uint8), 2) ^ 1).tolist() == [0x1A]
    assert join({2: np.array([1 ^ 6], np.uint8), 0: np.array([1 ^ 2], np.uint8)}).tolist() == [1]


def test_fewer_shares_say_nothing():
    """Of a secret byte that is always 7, one share of two is any byte equally often."""
    secrets = np.full((1, 100_000), 7, np.uint8)
    counts = np.bincount(divide(secrets, 3, 2)[1].reshape(-1), minlength=256)
    assert chi_square(counts) < 340  # 255 degrees of freedom: 1 in 3,000 is above


def chi_square(counts):
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2 / expected).sum()


@pytest.mark.parametrize(("n", "missing", "silent"), [(2, 0, 0), (5, 0, 0), (7, 2, 0), (7, 1, 1), (9, 0, 2)])
def test_the_sum_is_that_of_those_that_answered(n, missing, silent):
    """missing: devices that send nothing; silent: ones that answer and do not reveal."""
    circle, members = circle_of(n)
    sent = vectors(n)
    masked = {i: members[i].mask(sent[i]) for i in range(missing, n)}
    revealed = revealed_by(members, masked, range(missing + silent, n))
    found, liars = total(circle, masked, revealed)
    np.testing.assert_array_equal(found, sent[missing:].sum(0, dtype=np.uint32))
    assert liars == []


def test_what_the_aggregator_sees_of_a_device_is_noise():
    """Of zeros, and beside the sum: bytes as of random words, and another time others."""
    _, members = circle_of(3)
    zeros = np.zeros(100_000, np.uint32)
    first, again = (members[0].mask(zeros).words for _ in range(2))
    for words in (first, first - again):
        assert chi_square(np.bincount(words.view(np.uint8), minlength=256)) < 340
    other = members[1].mask(zeros).words
    assert chi_square(np.bincount((first + other).view(np.uint8), minlength=256)) < 340  # but their own masks


def test_too_few_that_reveal():
    circle, members = circle_of(6)
    masked = {i: members[i].mask(row) for i, row in enumerate(vectors(6))}
    with pytest.raises(MismatchError, match="4 devices have revealed right shares of device 0, and 5 must"):
        total(circle, masked, revealed_by(members, masked, range(4)))
    few = {u: masked[u].sealed[0] for u in range(4)}
    with pytest.raises(UsageError, match="4 of 6 devices have answered, and 5 must, this one among them"):
        members[0].reveal(few)
    with pytest.raises(UsageError, match="this one among them"):
        members[5].reveal({u: masked[u].sealed[5] for u in range(5)})


def test_a_liar_is_named_and_the_sum_is_right():
    circle, members = circle_of(7)
    sent = vectors(7)
    masked = {i: members[i].mask(sent[i]) for i in range(1, 7)}
    revealed = revealed_by(members, masked, range(1, 7))
    revealed[3] = Revealed(dict.fromkeys(revealed[3].own, bytes(32)), dict.fromkeys(revealed[3].shared, bytes(32)))
    found, liars = total(circle, masked, revealed)
    np.testing.assert_array_equal(found, sent[1:].sum(0, dtype=np.uint32))
    assert liars == [3]


def test_what_was_sealed_for_another_or_by_another_is_not_opened():
    _, members = circle_of(4)
    masked = {i: members[i].mask(row) for i, row in enumerate(vectors(4))}
    swapped = {0: masked[0].sealed[2], 1: masked[0].sealed[1], 2: masked[2].sealed[1][:-1], 3: masked[3].sealed[1]}
    assert sorted(members[1].reveal(swapped).own) == [3]
    _, strangers = circle_of(5)
    sent = strangers[4].mask(vectors(1)[0]).sealed[1]
    assert sorted(members[1].reveal({0: masked[0].sealed[1], 1: masked[1].sealed[1], 2: sent}).own) == [0, 1]


def test_a_key_that_is_not_in_the_round():
    circle, _ = circle_of(3)
    with pytest.raises(MismatchError, match="not among those of the round"):
        Member(circle, X25519PrivateKey.generate())


@pytest.mark.parametrize(("n", "threshold", "error", "says"), [
    (1, 1, UsageError, "1 devices would sum in secret"), (4, 2, UsageError, "the threshold is 2 of 4 devices"),
    (4, 5, UsageError, "choose from 3 to 4; 3 is usual")])
def test_circles_that_are_none(n, threshold, error, says):
    with pytest.raises(error) as raised:
        circle_of(n, threshold)
    assert says in str(raised.value)
    with pytest.raises(FormatError, match="not different ones"):
        Circle((bytes(32), bytes(32)), ROUND, 2)


@examples(60)
@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_fixed_point_means_are_those_of_floats(n, seed):
    rng = np.random.default_rng(seed)
    updates = rng.normal(0, 0.01, (n, 7)).astype(np.float32)
    weights = rng.uniform(0.05, 1, n)
    point = FixedPoint(0.05, n)
    summed = sum((point.encode(*one) for one in zip(updates, weights, strict=True)), np.zeros(8, np.uint32))
    wanted = np.average(np.clip(updates.astype(np.float64), -0.05, 0.05), axis=0, weights=weights)
    mean, weight = point.mean(summed)
    np.testing.assert_allclose(mean, wanted, atol=2 * 0.05 * n / point.levels / weights.mean())
    np.testing.assert_allclose(weight, weights.sum(), atol=n / point.levels)


def test_what_is_no_update():
    point = FixedPoint(1.0, 3)
    with pytest.raises(NumericsError, match="not finite"):
        point.encode(np.array([np.nan], np.float32), 1.0)
    with pytest.raises(UsageError, match="the weight of an update is 0"):
        point.encode(np.zeros(1, np.float32), 0.0)
    with pytest.raises(NumericsError, match="none that the devices can have"):
        point.mean(np.array([2**31 - 1, 5], np.uint32))
