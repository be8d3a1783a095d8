"""Schedules, clipping and AdamW against PyTorch's."""

import math

import numpy as np
import pytest

from edgetune import native, optim
from edgetune.config import TrainConfig


@pytest.fixture(scope="module")
def ctx():
    return native.Context(2)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedule_warms_up_and_ends(schedule):
    config = TrainConfig(lr=1.0, schedule=schedule, warmup=4)
    rates = [optim.learning_rate(config, step, 20) for step in range(1, 21)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == pytest.approx(1.0)
    assert max(rates) == pytest.approx(1.0)
    if schedule == "constant":
        assert rates[-1] == 1.0
    if schedule == "linear":
        assert np.diff(rates[4:]) == pytest.approx(np.full(15, -1 / 16))
    if schedule == "cosine":
        assert rates[4 + 8] == pytest.approx(0.5)
    assert rates[-1] > 0


def test_warmup_is_a_share_below_one():
    assert optim.warmup_steps(TrainConfig(warmup=0.1), 50) == 5
    assert optim.warmup_steps(TrainConfig(warmup=10), 50) == 10


def test_clip_scales_to_the_norm(ctx):
    grad = np.full(400, 3.0, np.float32)
    assert optim.clip(ctx, grad, 1.0) == pytest.approx(60.0)
    assert np.linalg.norm(grad) == pytest.approx(1.0)
    assert optim.clip(ctx, grad, 0.0) == pytest.approx(1.0)


def test_adamw_equals_torch(ctx):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, n_a = rng.standard_normal(301).astype(np.float32), 100
    config = TrainConfig(lr=1e-2, weight_decay=0.1, lora_plus=4.0)
    param, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    theirs = [torch.nn.Parameter(torch.from_numpy(part.copy())) for part in (start[:n_a], start[n_a:])]
    opt = torch.optim.AdamW([{"params": [theirs[0]]}, {"params": [theirs[1]], "lr": 4e-2}], lr=1e-2, weight_decay=0.1)
    for step in range(1, 6):
        grad = rng.standard_normal(301).astype(np.float32)
        optim.adamw(ctx, param, grad, m, v, n_a, config, 1e-2, step)
        for p, part in zip(theirs, (grad[:n_a], grad[n_a:]), strict=True):
            p.grad = torch.from_numpy(part.copy())
        opt.step()
    expected = np.concatenate([p.detach().numpy() for p in theirs])
    assert np.abs(param - expected).max() < 1e-6
    assert math.isfinite(float(param.sum()))
