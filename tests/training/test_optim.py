"""Schedules, clipping and AdamW against PyTorch's."""

import math

import numpy as np
import pytest

from edgetune.adapters.base import Group
from edgetune.backends import cpu
from edgetune.backends.base import MOMENT_BYTES, MOMENTS
from edgetune.training import optim
from edgetune.training.config import TrainConfig


def halves(n_a, n_b, lr_scale=1.0):
    """Groups as LoRA's: the second has its own rate."""
    return [Group("a", n_a), Group("b", n_b, lr_scale)]


@pytest.fixture(scope="module")
def ctx():
    return cpu.Cpu(2)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedule_warms_up_and_ends(schedule):
    config = TrainConfig(lr=1.0, schedule=schedule, warmup=4)
    rates = [optim.learning_rate(config, config.lr, step, 20) for step in range(1, 21)]
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
    start = rng.standard_normal(301).astype(np.float32)
    n_a = 100
    config = TrainConfig(lr=1e-2, weight_decay=0.1)
    param = start.copy()
    m = np.zeros_like(start)
    v = np.zeros_like(start)
    theirs = [torch.nn.Parameter(torch.from_numpy(part.copy())) for part in (start[:n_a], start[n_a:])]
    opt = torch.optim.AdamW([{"params": [theirs[0]]}, {"params": [theirs[1]], "lr": 4e-2}], lr=1e-2, weight_decay=0.1)
    for step in range(1, 6):
        grad = rng.standard_normal(301).astype(np.float32)
        optim.adamw(ctx, param, grad, (m, v), halves(n_a, 301 - n_a, 4.0), config, 1e-2, step)
        for p, part in zip(theirs, (grad[:n_a], grad[n_a:]), strict=True):
            p.grad = torch.from_numpy(part.copy())
        opt.step()
    expected = np.concatenate([p.detach().numpy() for p in theirs])
    assert np.abs(param - expected).max() < 1e-6
    assert math.isfinite(float(param.sum()))


# ---- moments in 8 bits ----


def decoded(moments):
    """m and v by the codes that native/et.h tells, in double."""
    blocks = moments.reshape(-1, MOMENT_BYTES)
    scale = blocks[:, :8].copy().view(np.float32)
    m = blocks[:, 8:264].view(np.int8)
    v = blocks[:, 264:]
    return (np.float64(scale[:, :1]) * np.sign(m) * (np.abs(m / 127.0)) ** 4).ravel(), (
        np.float64(scale[:, 1:]) * (v / 255.0) ** 8).ravel()


def gradients(n, seed=0):
    """Sizes over four decades, some zero."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(n) * 10 ** rng.uniform(-4, 0, n) * (rng.random(n) > 0.1)).astype(np.float32)


def eight_bit(n_a, n_b):
    (buffer,) = optim.buffers("8bit", halves(n_a, n_b))
    return np.zeros(buffer.nbytes, np.uint8)


def places(x, most, codes, root):
    """The places of the values on the scale of codes; most: the largest of each value's block."""
    return np.sign(x) * codes * (np.abs(x) / most) ** (1 / root)


def test_in_8_bits_a_step_is_torchs_from_the_moments_as_they_are(ctx):
    """What is added is not rounded before it is used; then m is the nearest code, v one of the two beside it."""
    torch = pytest.importorskip("torch")
    n = 2048
    config = TrainConfig(lr=1e-2, weight_decay=0.1)
    param = gradients(n, 1)
    moments = eight_bit(n // 2, n // 2)
    for step in range(1, 20):
        m, v = decoded(moments)
        grad = gradients(n, 1 + step)
        theirs = torch.nn.Parameter(torch.from_numpy(param.astype(np.float64)))
        opt = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1)
        opt.state[theirs] = {"step": torch.tensor(step - 1.0), "exp_avg": torch.from_numpy(m),
                             "exp_avg_sq": torch.from_numpy(v)}
        theirs.grad = torch.from_numpy(grad.astype(np.float64))
        optim.adamw(ctx, param, grad, [moments], halves(n // 2, n // 2), config, 1e-2, step)
        opt.step()  # also on m and v
        assert np.abs(param - theirs.detach().numpy()).max() < 1e-6
        for got, want, codes, root, far in zip(decoded(moments), (m, v), (127, 255), (4, 8), (0.501, 1.001),
                                               strict=True):
            most = np.repeat(np.abs(want).reshape(-1, MOMENTS).max(1), MOMENTS)
            assert np.abs(places(got, most, codes, root) - places(want, most, codes, root)).max() <= far
        assert ((decoded(moments)[1] > 0) == (v > 0)).all()


def test_v_is_right_on_average(ctx):
    """A block's largest v stays, all others lose a thousandth, which the nearest code would never show."""
    start = eight_bit(512, 512)
    none = np.zeros(1024, np.float32)
    optim.adamw(ctx, none.copy(), gradients(1024), [start], halves(512, 512), TrainConfig(), 1e-3, 1)
    before = decoded(start)[1]
    means = np.zeros(1024)
    largest = before == np.repeat(before.reshape(-1, MOMENTS).max(1), MOMENTS)
    for seed in range(400):
        moments = start.copy()
        grad = np.where(largest, np.sqrt(before), 0).astype(np.float32)
        optim.adamw(ctx, none.copy(), grad, [moments], halves(512, 512), TrainConfig(seed=seed), 1e-3, 2)
        means += decoded(moments)[1] / 400
    some = (before > 0) & ~largest
    shares = means[some] / before[some]
    assert np.std(shares) > 1e-4
    assert np.mean(shares) == pytest.approx(0.999, abs=2e-4)


def test_in_8_bits_a_and_b_have_separate_rates_and_blocks(ctx):
    n_a = 300
    n_b = 700
    config = TrainConfig()
    grad = gradients(n_a + n_b)
    param = np.zeros(n_a + n_b, np.float32)
    moments = eight_bit(n_a, n_b)
    optim.adamw(ctx, param, grad, [moments], halves(n_a, n_b, 4.0), config, 1e-3, 1)
    moved = grad != 0
    assert np.abs(param[:n_a][moved[:n_a]]) == pytest.approx(1e-3, rel=0.01)
    assert np.abs(param[n_a:][moved[n_a:]]) == pytest.approx(4e-3, rel=0.01)
    m = decoded(moments)[0]
    assert np.abs(m[512:512 + n_b] - 0.1 * grad[n_a:]).max() < 0.02 * np.abs(grad).max()
    assert not m[n_a:512].any()
    assert len(moments) == (2 + 3) * MOMENT_BYTES
