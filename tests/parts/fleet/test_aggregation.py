"""Aggregation, compared with dense products in float64, and properties that must hold of any updates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgetune.adapters.lora import Pair
from edgetune.errors import EdgetuneError, UsageError
from edgetune.parts.fleet.rounds.aggregation import BETA1, BETA2, HEAVIEST, TAU, aggregate, average_of
from edgetune.parts.fleet.rounds.answer import began_at
from edgetune.parts.fleet.rounds.low_rank_sums import Term, best_of_rank, missed_by_averages, squared_norm, term_of
from edgetune.parts.fleet.rounds.member import noisy
from edgetune.parts.fleet.rounds.options import Noise, RoundOptions, half_of

SHAPES = {"blk.0.attn_q": (12, 9), "blk.0.ffn_down": (7, 16)}  # N, K
SCALE = 2.0
FROZEN = RoundOptions(aggregation="frozen-a", clip=0.0, refuse=0.0)
PRODUCTS = RoundOptions(aggregation="svd", clip=0.0, refuse=0.0)


@dataclass
class Sent:
    """An update in memory."""

    device: str
    tokens: int
    pairs: dict[str, Pair]
    rank: int = 4

    def pair(self, name):
        return self.pairs[name]

    def began(self, start):
        return began_at(start, self.rank)


def a_lora(seed, rank=4):
    rng = np.random.default_rng(seed)
    return {name: Pair(rng.standard_normal((rank, k)).astype(np.float32),
                       rng.standard_normal((n, rank)).astype(np.float32), SCALE) for name, (n, k) in SHAPES.items()}


START = a_lora(0)


def sent(seed, half="ab", tokens=10, size=0.1, rank=4):
    """A device that moved these halves of the start."""
    moves = a_lora(seed + 1, rank)
    begun = {name: began_at(pair, rank) for name, pair in START.items()}
    pairs = {name: Pair(pair.a + size * moves[name].a * ("a" in half), pair.b + size * moves[name].b * ("b" in half),
                        SCALE) for name, pair in begun.items()}
    return Sent(f"device {seed:03}", tokens, pairs, rank)


def dense(pair):
    return pair.scale * pair.b.astype(np.float64) @ pair.a.astype(np.float64)


def summed(updates, name):
    """The weighted sum of what devices learned, by dense products."""
    tokens = sum(one.tokens for one in updates)
    return dense(START[name]) + sum(one.tokens / tokens * (dense(one.pair(name)) - dense(one.began(START[name])))
                                    for one in updates)


def apart(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


seeds = st.lists(st.integers(1, 500), min_size=1, max_size=6, unique=True)
weights = st.integers(1, 100)


# ---- sums of products ------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 9))
def test_the_best_of_a_rank_is_the_dense_svds(found, rank):
    """Also of terms that are subtracted."""
    terms = [Term((-1.0) ** i * (i + 0.5), pair.b.astype(np.float64), pair.a.astype(np.float64))
             for i, pair in enumerate(a_lora(seed)["blk.0.attn_q"] for seed in found)]
    whole = sum(term.factor * term.b @ term.a for term in terms)
    u, values, v = np.linalg.svd(whole)
    pair, lost = best_of_rank(terms, rank, SCALE)
    assert pair.a.shape == (rank, 9)
    assert pair.b.shape == (12, rank)
    assert apart(dense(pair), (u[:, :rank] * values[:rank]) @ v[:rank]) < 1e-5
    assert lost == pytest.approx(float(np.sum(values[rank:] ** 2)), abs=1e-9 * np.sum(values**2))
    assert squared_norm(terms) == pytest.approx(np.linalg.norm(whole) ** 2)


def test_a_rank_above_that_of_the_sum_leaves_the_rest_zero():
    pair, lost = best_of_rank([term_of(START["blk.0.attn_q"])], 7, SCALE)
    assert not pair.a[4:].any()
    assert not pair.b[:, 4:].any()
    assert lost == 0.0


def test_equal_sums_have_equal_factors():
    """Whatever factors the update came in."""
    pair = START["blk.0.attn_q"]
    turned = Pair(-3.0 * pair.a, pair.b / -3.0, SCALE)
    (a, _), (b, _) = (best_of_rank([term_of(one)], 4, SCALE) for one in (pair, turned))
    np.testing.assert_allclose(a.b, b.b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(a.a, b.a, rtol=1e-4, atol=1e-5)


@given(seeds)
def test_averages_of_factors_miss_the_covariance(found):
    pairs = [a_lora(seed)["blk.0.ffn_down"] for seed in found]
    shares = np.arange(1.0, len(pairs) + 1)
    shares /= shares.sum()
    averaged = Pair(sum(p * one.a.astype(np.float64) for p, one in zip(shares, pairs, strict=True)),
                    sum(p * one.b.astype(np.float64) for p, one in zip(shares, pairs, strict=True)), SCALE)
    true = sum(p * dense(one) for p, one in zip(shares, pairs, strict=True)) - dense(averaged)
    assert missed_by_averages(pairs, shares) == pytest.approx(np.linalg.norm(true) ** 2, rel=1e-6, abs=1e-9)
    assert math.isnan(missed_by_averages([pairs[0], began_at(pairs[0], 2)], [0.5, 0.5]))


# ---- a round ---------------------------------------------------------------------------------------------------------


@given(seeds, st.data())
def test_with_a_frozen_the_sum_is_exact(found, data):
    updates = [sent(seed, "b", data.draw(weights)) for seed in found]
    assume(max(one.tokens for one in updates) <= HEAVIEST * np.median([one.tokens for one in updates]))
    next_ = aggregate(updates, START, FROZEN, 1, {})
    for name, pair in next_.pairs.items():
        np.testing.assert_array_equal(pair.a, START[name].a)
        assert apart(dense(pair), summed(updates, name)) < 1e-6
    assert next_.missed < 1e-12
    assert next_.cut == 0.0


def test_rolora_takes_turns():
    options = replace(FROZEN, aggregation="rolora")
    assert [half_of("rolora", number) for number in (1, 2, 3, 4)] == ["b", "a", "b", "a"]
    for number, half in ((1, "b"), (2, "a")):
        updates = [sent(seed, half, seed) for seed in (3, 4, 5)]
        next_ = aggregate(updates, START, options, number, {})
        for name, pair in next_.pairs.items():
            frozen = "a" if half == "b" else "b"
            np.testing.assert_array_equal(getattr(pair, frozen), getattr(START[name], frozen))
            assert apart(dense(pair), summed(updates, name)) < 1e-6


@given(seeds)
def test_products_are_the_best_of_the_rank(found):
    """Of the weighted sum by dense products, also of devices of smaller ranks."""
    updates = [sent(seed, "ab", 10 + i, rank=4 - seed % 3) for i, seed in enumerate(found)]
    next_ = aggregate(updates, START, PRODUCTS, 1, {})
    lost = change = 0.0
    for name, pair in next_.pairs.items():
        whole = summed(updates, name)
        u, values, v = np.linalg.svd(whole)
        best = (u[:, :4] * values[:4]) @ v[:4]
        assert pair.rank == 4
        assert apart(dense(pair), best) < 1e-5
        lost += float(np.sum(values[4:] ** 2))
        change += np.linalg.norm(best - dense(START[name])) ** 2
    assert next_.cut == pytest.approx(math.sqrt(lost / change), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("options", "half"), [(FROZEN, "b"), (PRODUCTS, "ab"),
                                               (replace(FROZEN, average="median"), "b"),
                                               (replace(FROZEN, average="trimmed-mean"), "b")])
@given(seed=st.integers(1, 500))
def test_one_device_alone_is_its_own_update(options, half, seed):
    update = sent(seed, half)
    next_ = aggregate([update], START, options, 1, {})
    for name, pair in next_.pairs.items():
        assert apart(dense(pair), dense(update.pair(name))) < 1e-5
    assert next_.missed < 1e-12


@pytest.mark.parametrize(("options", "half"), [(RoundOptions(aggregation="frozen-a"), "b"), (RoundOptions(), "ab")])
@given(found=seeds, order=st.randoms())
def test_the_order_of_answers_changes_no_bit(options, half, found, order):
    updates = [sent(seed, half, seed) for seed in found]
    shuffled = [*updates]
    order.shuffle(shuffled)
    one, other = (aggregate(each, START, options, 1, {}) for each in (updates, shuffled))
    for name, pair in one.pairs.items():
        assert pair.a.tobytes() == other.pairs[name].a.tobytes()
        assert pair.b.tobytes() == other.pairs[name].b.tobytes()


# ---- who counts ------------------------------------------------------------------------------------------------------


def test_a_large_update_is_clipped_and_a_huge_one_left_out():
    updates = [*(sent(seed, "b") for seed in range(1, 8)), sent(8, "b", size=0.4), sent(9, "b", size=50.0)]
    next_ = aggregate(updates, START, RoundOptions(aggregation="frozen-a"), 1, {})
    assert [one.device for one in next_.left_out] == ["device 009"]
    assert "times the median" in next_.left_out[0].reason
    clipped = {one.update.device: one for one in next_.counted if one.scale < 1.0}
    middle = float(np.median([one.norm for one in next_.counted] + [math.inf]))
    assert [*clipped] == ["device 008"]
    assert clipped["device 008"].scale * clipped["device 008"].norm == pytest.approx(2.0 * middle)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_left_out(value):
    """And the others' aggregate is as without it."""
    bad = sent(3, "b")
    bad.pairs["blk.0.attn_q"].b[2, 1] = value
    others = [sent(seed, "b") for seed in (1, 2)]
    one, other = (aggregate(each, START, FROZEN, 1, {}) for each in ([*others, bad], others))
    assert [(each.device, each.reason) for each in one.left_out] == [("device 003", "its update is not finite")]
    assert all(pair.b.tobytes() == other.pairs[name].b.tobytes() for name, pair in one.pairs.items())


@pytest.mark.parametrize(("options", "half"), [(RoundOptions(aggregation="frozen-a"), "b"), (RoundOptions(), "ab")])
def test_of_many_devices_the_liars_change_nothing(options, half):
    """A twentieth sends updates that are scaled or not finite; the aggregate is that of the others, to the bit."""
    updates = [sent(seed, half, 10 + seed % 7) for seed in range(1, 201)]
    liars = [sent(seed, half, size=30.0) for seed in range(300, 305)]
    for seed, value in enumerate((math.nan, math.inf, -math.inf, 3e38, 1e30), start=400):
        liars.append(sent(seed, half))
        liars[-1].pairs["blk.0.ffn_down"].b[:] = value
    one, other = (aggregate(each, START, options, 1, {}) for each in ([*liars, *updates], updates))
    assert {each.device for each in one.left_out} == {liar.device for liar in liars}
    for name, pair in one.pairs.items():
        assert pair.a.tobytes() == other.pairs[name].a.tobytes()
        assert pair.b.tobytes() == other.pairs[name].b.tobytes()


def test_a_device_that_claims_many_tokens_does_not_outweigh_all():
    updates = [*(sent(seed, "b") for seed in range(1, 6)), sent(6, "b", tokens=10**9)]
    next_ = aggregate(updates, START, FROZEN, 1, {})
    assert next_.counted[-1].share == pytest.approx(HEAVIEST / (5 + HEAVIEST))


def test_a_round_without_its_quorum_does_not_count():
    bad = sent(2, "b")
    bad.pairs["blk.0.attn_q"].b[:] = math.nan
    with pytest.raises(EdgetuneError, match=r"1 answers count, the quorum .* is 2 \(left out: device 002: its update"):
        aggregate([sent(1, "b"), bad], START, replace(FROZEN, quorum=2), 1, {})
    with pytest.raises(EdgetuneError, match="0 answers count"):
        aggregate([], START, FROZEN, 1, {})


# ---- other averages, and the server's step ---------------------------------------------------------------------------


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=15), st.sampled_from([0.0, 0.1, 0.25, 0.49]))
def test_averages_of_values(values, trim):
    found = {name: float(average_of(np.array(values)[:, None], [1 / len(values)] * len(values),
                                    RoundOptions(average=name, trim=trim))[0])
             for name in ("mean", "trimmed-mean", "median")}
    cut = min(int(trim * len(values)), (len(values) - 1) // 2)
    kept = sorted(values)[cut:len(values) - cut]
    assert found["mean"] == pytest.approx(math.fsum(values) / len(values), abs=1e-6)
    assert found["trimmed-mean"] == pytest.approx(math.fsum(kept) / len(kept), abs=1e-6)
    assert min(values) <= found["median"] <= max(values)
    assert sum(value <= found["median"] for value in values) * 2 >= len(values)


@pytest.mark.parametrize("average", ["median", "trimmed-mean"])
def test_a_fifth_of_liars_moves_these_averages_no_further_than_honest_devices(average):
    honest = [sent(seed, "b") for seed in range(1, 9)]
    liars = [sent(seed, "b", size=1e3) for seed in (20, 21)]
    options = replace(FROZEN, average=average, trim=0.25)
    next_ = aggregate([*honest, *liars], START, options, 1, {})
    for name, pair in next_.pairs.items():
        sides = np.stack([one.pair(name).b for one in honest])
        assert (pair.b >= sides.min(0) - 1e-6).all()
        assert (pair.b <= sides.max(0) + 1e-6).all()


def test_fedadam_is_the_papers():
    """Two rounds of one device, by the formulas of algorithm 2."""
    options = replace(FROZEN, server="adam", server_rate=0.01)
    update = sent(1, "b")
    first = aggregate([update], START, options, 1, {})
    second = aggregate([update], first.pairs, options, 2, first.moments)
    m = v = b = None
    for name in START:
        b = START[name].b.astype(np.float64)
        m, v = np.zeros_like(b), np.full_like(b, TAU**2)
        for _ in range(2):
            change = update.pair(name).b - b
            m = BETA1 * m + (1 - BETA1) * change
            v = BETA2 * v + (1 - BETA2) * change**2
            b = b + 0.01 * m / (np.sqrt(v) + TAU)
        np.testing.assert_allclose(second.pairs[name].b, b, rtol=1e-5, atol=1e-6)


def test_the_rate_of_a_plain_server_scales_the_change():
    update = sent(1, "b")
    next_ = aggregate([update], START, replace(FROZEN, server_rate=0.5), 1, {})
    for name, pair in next_.pairs.items():
        np.testing.assert_allclose(pair.b, (START[name].b + update.pair(name).b) / 2, rtol=1e-5)


@pytest.mark.parametrize(("options", "said"), [
    (RoundOptions(average="median"), "average is median with aggregation svd"),
    (RoundOptions(server="adam"), "server is adam with aggregation svd"),
    (RoundOptions(refuse=1.0), "refuse is 1, less than clip, 2"),
    (RoundOptions(quorum=0), "quorum is 0, the least is 1")])
def test_options_that_exclude_each_other_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        options.check()


# ---- noise -----------------------------------------------------------------------------------------------------------


def test_noise_has_the_deviation_that_is_said_and_the_norm_is_clipped():
    arrays = {"x": np.full((200, 100), 3.0, np.float16)}
    noise = Noise(10.0, 0.01).check()
    found = noisy(arrays, noise, seed=1)
    values = found["x"].astype(np.float64)
    assert noise.deviation == pytest.approx(0.1)
    assert values.mean() * math.sqrt(values.size) == pytest.approx(10.0, abs=0.5)
    assert values.std() == pytest.approx(0.1, rel=0.02)
    other = noisy(arrays, noise)
    assert (other["x"] != found["x"]).any()
    with pytest.raises(UsageError, match="noise is 0 with the norm 1"):
        Noise(1.0, 0.0).check()
