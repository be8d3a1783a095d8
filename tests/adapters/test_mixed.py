"""edgetune.adapters.mixed: against dense matrices and numpy's SVD of them."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.adapters.lora import Lora, Pair
from edgetune.adapters.mixed import between, size_of
from edgetune.errors import MismatchError


def random(seed: int, rank: int, scale: float = 2.0) -> Lora:
    rng = np.random.default_rng(seed)
    return {name: Pair(rng.normal(size=(rank, 12)).astype(np.float32), rng.normal(size=(9, rank)).astype(np.float32),
                       scale) for name in ("blk.0.attn_q", "blk.1.attn_q")}


def dense(pair: Pair) -> np.ndarray:
    return pair.scale * pair.b.astype(np.float64) @ pair.a.astype(np.float64)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_nearest_of_that_rank(share: float) -> None:
    first = random(0, 3)
    second = random(1, 4, scale=0.5)
    found = between(first, second, share)
    for name, pair in found.items():
        wanted = (1 - share) * dense(first[name]) + share * dense(second[name])
        u, s, v = np.linalg.svd(wanted)
        best = (u[:, :4] * s[:4]) @ v[:4]
        assert pair.rank == 4
        assert pair.scale == 0.5
        np.testing.assert_allclose(dense(pair), best, atol=1e-5)


def test_between_two_of_one_direction_nothing_is_lost() -> None:
    second = random(2, 4)
    first = {name: Pair(pair.a, pair.b * np.float32(0.5), pair.scale) for name, pair in second.items()}
    for name, pair in between(first, second, 0.5).items():
        np.testing.assert_allclose(dense(pair), 0.75 * dense(second[name]), rtol=1e-4, atol=1e-5)


def test_from_nothing() -> None:
    second = random(3, 2)
    for name, pair in between({}, second, 0.25).items():
        np.testing.assert_allclose(dense(pair), 0.25 * dense(second[name]), rtol=1e-6)


def test_other_projections_are_refused() -> None:
    second = random(4, 2)
    with pytest.raises(MismatchError, match=r"one adapter changes blk\.1\.attn_q, the other does not"):
        between(second, {"blk.0.attn_q": second["blk.0.attn_q"]}, 0.5)


def test_sizes() -> None:
    pairs = random(5, 3)
    for name, size in size_of(pairs).items():
        assert size == pytest.approx(np.linalg.norm(dense(pairs[name])), rel=1e-5)
