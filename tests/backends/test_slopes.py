"""Gradients of ops against finite differences, on the plainest kernel set."""


import numpy as np
import pytest
from op_inputs import forest, noise

from edgetune.backends.cpu import Cpu


def slope(f, x, direction, dout):
    """The derivative of sum(f(x) * dout) along direction."""
    step = np.float32(2e-3)
    change = f(x + step * direction).astype(np.float64) - f(x - step * direction)
    return float((change * dout).sum() / (2 * step))


def agree(grad, f, x, dout):
    for seed in range(50, 53):
        direction = noise(seed, *x.shape)
        want = float((grad.astype(np.float64) * direction).sum())
        assert slope(f, x, direction, dout) == pytest.approx(want, rel=2e-3, abs=2e-3 * float(np.linalg.norm(grad)))


def test_rmsnorm_slope():
    ctx = Cpu(1, "scalar")
    x = noise(0, 4, 50)
    weight = noise(1, 50)
    dout = noise(2, 4, 50)
    rstd = np.empty(4, np.float32)
    grad = np.empty_like(x)

    def f(x):
        out = np.empty_like(x)
        ctx.rmsnorm_forward(out, rstd, x, weight, 1e-6)
        return out

    f(x)
    ctx.rmsnorm_backward(grad, dout, x, weight, rstd)
    agree(grad, f, x, dout)


@pytest.mark.parametrize("kind", ["silu", "gelu"])
def test_glu_slope(kind):
    ctx = Cpu(1, "scalar")
    gate = noise(0, 99)
    up = noise(1, 99)
    dout = noise(2, 99)
    dgate = np.empty_like(gate)
    dup = np.empty_like(up)

    def f(gate, up):
        out = np.empty_like(gate)
        ctx.glu_forward(out, gate, up, kind)
        return out

    ctx.glu_backward(dgate, dup, np.empty_like(gate), dout, gate, up, kind)
    agree(dgate, lambda x: f(x, up), gate, dout)
    agree(dup, lambda x: f(gate, x), up, dout)


@pytest.mark.parametrize(("documents", "window"), [(1, 0), (3, 0), (1, 9), (0, 0), (0, 5)])
def test_attention_slope(documents, window):
    ctx = Cpu(1, "scalar")
    end, position = forest(40, documents)
    inputs = [noise(0, 40, 4, 16), noise(1, 40, 2, 16), noise(2, 40, 2, 16)]
    dout = noise(3, 40, 4, 16)
    lse = np.empty((4, 40), np.float32)
    delta = np.empty((4, 40), np.float32)
    grads = [np.empty_like(x) for x in inputs]

    def f(q, k, v):
        out = np.empty_like(q)
        ctx.attention_forward(out, lse, q, k, v, end, position, 0.25, window)
        return out

    out = f(*inputs)
    ctx.attention_backward(*grads, delta, dout, out, lse, *inputs, end, position, 0.25, window)
    for i, grad in enumerate(grads):
        agree(grad, lambda x, i=i: f(*inputs[:i], x, *inputs[i + 1:]), inputs[i], dout)


def test_head_slope():
    ctx = Cpu(1, "scalar")
    h = noise(0, 6, 32) * np.float32(0.3)
    w = noise(1, 90, 32)
    a = noise(2, 6)
    targets = np.arange(6, dtype=np.int32)
    logits = np.empty((6, 32), np.float32)
    state = np.empty((6, 4), np.float32)
    logp = np.empty(6, np.float32)
    grad = np.empty_like(h)

    def f(h):
        out = np.empty(6, np.float32)
        ctx.head_forward(out, None, logits, state, h, w, "F32", targets)
        return out

    ctx.head_backward(grad, logp, logits, logits, state, h, w, "F32", targets, a)
    agree(grad, f, h, -a)
