"""edgetune.llamacpp.divergence and log_softmax against PyTorch in float64."""

import numpy as np
import pytest

from edgetune.llamacpp.divergence import divergence
from edgetune.llamacpp.sampling import log_softmax

torch = pytest.importorskip("torch")


def test_log_softmax():
    logits = np.random.default_rng(0).normal(0, 30, (5, 1000)).astype(np.float32)
    truth = torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()
    assert np.abs(log_softmax(logits) - truth).max() < 1e-5
    assert np.abs(log_softmax(logits[2]) - truth[2]).max() < 1e-5
    assert np.isfinite(log_softmax(np.array([1e30, -1e30], np.float32))).all()


@pytest.mark.parametrize("positions", [1, 64, 150])
@pytest.mark.parametrize("shorter", [0, 1])
def test_divergence(positions, shorter):
    rng = np.random.default_rng(positions)
    source = rng.normal(0, 3, (positions, 50)).astype(np.float32)
    model = source + rng.normal(0, 0.5, source.shape).astype(np.float32)
    following = rng.integers(0, 50, positions - shorter).astype(np.int32)
    found = divergence(source, model, following)
    p, q = (torch.log_softmax(torch.from_numpy(logits).double(), -1) for logits in (source, model))
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    tokens = torch.from_numpy(following).long()

    def loss(logp):
        return float(torch.nn.functional.nll_loss(logp[: len(tokens)], tokens, reduction="sum")) if len(tokens) else 0.0

    wanted = (loss(p), loss(q), kl.sum(), kl.square().sum(), (p.argmax(-1) == q.argmax(-1)).sum())
    assert found == pytest.approx([float(value) for value in wanted], rel=1e-4)
