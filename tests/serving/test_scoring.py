"""Log-probabilities within a memory budget: fewer tokens at once, then streamed weights, and the same numbers."""

import re

import numpy as np
import pytest

from edgetune.data.packing import Example
from edgetune.data.trees import micro_batches
from edgetune.errors import UsageError
from edgetune.serving.rollouts import scoring
from edgetune.serving.rollouts.scoring import open_scorer
from edgetune.serving.rollouts.texts import Engine
from edgetune.training.passes import scores

TOKENS = 24  # of a text
MIB = 1 << 20


@pytest.fixture(autouse=True)
def process(monkeypatch):
    """A process of no size, so that a budget is that of the scorer alone."""
    monkeypatch.setattr(scoring.device, "rss", lambda: 0)
    monkeypatch.setattr(scoring, "GROWTH", 0)


def opened(bundle, budget):
    engine = Engine(budget, "--memory", precision="exact", threads=1, backend="cpu")
    return open_scorer(bundle.gguf, {}, engine, longest=TOKENS, at_once=8 * TOKENS)


def logps(decoder):
    rng = np.random.default_rng(5)
    texts = [Example(rng.integers(3, 200, TOKENS).astype(np.int32), np.ones(TOKENS, np.float32)) for _ in range(9)]
    found = scores(decoder, micro_batches(texts, decoder.run.max_tokens))
    return [found[id(text)].tolist() for text in texts]


def least(bundle):
    """Bytes, by what the refusal says."""
    with pytest.raises(UsageError, match=rf"text of {TOKENS} tokens need [\d.]+ [MG]iB, the budget is \d") as refused:
        opened(bundle, 1)
    needed = re.search(r"--memory (\d+)M", refused.value.hint)
    assert needed
    return int(needed[1]) * MIB


@pytest.mark.dev
def test_a_small_budget_computes_less_at_once_streams_and_finds_the_same(bundle):
    wide = opened(bundle, 1 << 30)
    assert (wide.run.max_tokens, wide.stream.streamed) == (8 * TOKENS, 0)
    budgets = np.linspace(1 << 16, 64 * MIB, 200, dtype=int)
    fits = []
    for budget in budgets:
        try:
            fits.append(opened(bundle, int(budget)))
        except UsageError:
            assert not fits, "a larger budget fits where a smaller one did"
    assert fits[0].stream.streamed > 0 or fits[0].run.max_tokens < 8 * TOKENS
    wanted = logps(wide)
    for decoder in (fits[0], fits[len(fits) // 2]):
        assert np.allclose(logps(decoder), wanted, rtol=1e-5, atol=1e-5)


def test_what_is_named_as_the_least_suffices(bundle):
    opened(bundle, least(bundle))
