"""Which tokens a draw is among, against sorted probabilities in numpy; how often each is drawn, against softmax."""

from typing import Any

import numpy as np
import pytest

from edgetune.backends.base import SAMPLE_STATE
from edgetune.backends.cpu import Cpu
from edgetune.errors import UsageError
from edgetune.llamacpp.sampling import Sampling
from edgetune.serving.rollouts.draws import NUCLEUS, candidates_of, check_sampling, keys_of, limits_of

OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def support(logits, top_k, top_p, min_p):
    """What is left of one row: the k highest; of them the fewest that have top_p together; of all no fainter ones."""
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    p = np.exp(logits[order].astype(np.float64) - logits.max())
    p /= p.sum()
    order = order[: int((np.cumsum(p) < top_p).sum()) + 1]
    return {int(i) for i in order if np.exp(logits[i] - np.float64(logits.max())) >= min_p}


@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (5, 1, 0), (40, 0.95, 0.05), (1, 1, 0), (300, 0.9, 0), (0, 0.9, 0), (0, 0.999, 0.01), (0, 0, 0), (0, 1, 0.3),
        (7, 0.5, 0.9), (0, 0.95, 0.05), (900, 0.7, 0)],
)
def test_supports(spread, top_k, top_p, min_p):
    """Also of flat distributions, of which more entries are needed than are looked for at once."""
    logits = (np.random.default_rng(0).standard_normal((6, 900)) * spread).astype(np.float32)
    sampling = Sampling(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p)
    m = candidates_of(sampling, 900)

    def top(limit):
        below = np.where(logits < limit[:, None], logits, -np.inf)
        lse = np.log(np.exp(logits.astype(np.float64)).sum(1))
        return np.random.default_rng(1).permuted(-np.sort(-below, axis=1)[:, :m], axis=1), lse

    limits = limits_of(sampling, top, 6)
    for row, limit in zip(logits, limits, strict=True):
        assert set(np.flatnonzero(row >= limit).tolist()) == support(row, top_k, top_p, min_p)


def test_candidates():
    assert candidates_of(Sampling(), 900) == 0  # greedy
    assert candidates_of(Sampling(**OFF), 900) == 0
    assert candidates_of(Sampling(**OFF | {"top_k": 40}), 900) == 40
    assert candidates_of(Sampling(**OFF | {"top_p": 0.9}), 900) == NUCLEUS
    assert candidates_of(Sampling(**OFF | {"top_p": 0.9}), 100) == 100
    assert candidates_of(Sampling(**OFF | {"min_p": 0.1}), 900) == 1


def test_keys_differ_by_each_part_and_by_nothing_else():
    parts = [(s, p, k, t) for s in (0, 1, 2**32 - 2) for p in range(5) for k in range(5) for t in range(5)]
    keys = {part: keys_of(part[0], [part[1]], [part[2]], [part[3]]).tobytes() for part in parts}
    assert len(set(keys.values())) == len(parts)
    together = keys_of(1, [part[1] for part in parts], [part[2] for part in parts], [part[3] for part in parts])
    assert together[5].tobytes() == keys[(1, *parts[5][1:])]


@pytest.mark.parametrize(("temperature", "limited"), [(1.0, False), (0.6, False), (2.0, True)])
def test_draws_are_those_of_softmax(temperature, limited):
    """Chi-square over 10,000 draws with other keys: as of answers, 100 prompts by 10 samples by 10 positions."""
    v, d, n, rows = 24, 32, 10_000, 500
    rng = np.random.default_rng(4)
    w = rng.standard_normal((v, d)).astype(np.float32)
    h = np.tile((rng.standard_normal(d) / 3).astype(np.float32), (rows, 1))
    logits = h[0].astype(np.float64) @ w.T
    limit = np.sort(logits)[8] - 1e-4 if limited else -np.inf
    p = np.where(logits >= limit, np.exp(logits / temperature), 0)
    p /= p.sum()
    numbers = np.indices((100, 10, 10)).reshape(3, -1)
    keys = keys_of(7, *(part.tolist() for part in numbers))
    counts = np.zeros(v)
    ops = Cpu(1)
    token = np.empty(rows, np.int32)
    logp = np.empty(rows, np.float32)
    drawn = np.empty(rows, np.float32)
    limits = np.full(rows, limit, np.float32) if limited else None
    work = np.empty((rows, 7), np.float32), np.empty((rows, SAMPLE_STATE), np.float32)
    for begin in range(0, n, rows):
        ops.head_sample(token, logp, drawn, *work, h, w, "F32", keys[begin:begin + rows], limits, temperature)
        counts += np.bincount(token, minlength=v)
        assert np.abs(drawn - np.log(p[token])).max() < 1e-5
        assert np.abs(logp - (logits - np.log(np.exp(logits).sum()))[token]).max() < 1e-5
    seen = p > 0
    assert counts[~seen].sum() == 0
    chi_square = ((counts - n * p)[seen] ** 2 / (n * p)[seen]).sum()
    assert chi_square < 62  # of 23 degrees of freedom: once in 50,000 times


@pytest.mark.parametrize(("name", "value"), [("grammar", 'root ::= "a"'), ("repeat_penalty", 1.1),
                                             ("logit_bias", ((1, 2.0),)), ("presence_penalty", 0.5)])
def test_what_only_llama_cpp_does_is_refused(name, value):
    with pytest.raises(UsageError, match=f"{name} is .*answer through llama.cpp"):
        check_sampling(Sampling(**{name: value}))
    with pytest.raises(UsageError, match="top_p is 2"):
        check_sampling(Sampling(top_p=2))
