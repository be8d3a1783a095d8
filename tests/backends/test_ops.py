"""Every op but the products, on every kernel set this CPU can run: torch's autograd, numbers of threads."""

from functools import lru_cache

import numpy as np
import pytest
from op_inputs import forest, noise, visible

from edgetune.backends import cpu
from edgetune.backends.base import HEAD_STATE, MOMENT_BYTES, MOMENTS

torch = pytest.importorskip("torch", reason="torch is the truth here")
F = torch.nn.functional

ISAS = [isa for isa in cpu.isa_names() if cpu.usable(isa)]


@pytest.fixture(params=ISAS)
def ctx(request):
    return cpu.Cpu(2, request.param)


def leaf(x):
    """In double, so that the error measured is ours."""
    return torch.from_numpy(x).double().requires_grad_()


def close(got, want, tolerance=3e-6):
    truth = want.detach().numpy()
    assert np.abs(got - truth).max() <= tolerance * np.abs(truth).max()


def bf16(x):
    """As uint16, rounded by torch."""
    return torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)


def floats(x):
    return (x.astype(np.uint32) << 16).view(np.float32)


def close_bf16(got, want, tolerance=3e-6):
    """Within the rounding of each value, and what a float would be off."""
    truth = want.detach().numpy()
    assert got.dtype == np.uint16
    assert (np.abs(floats(got) - truth) - 2.0**-8 * np.abs(truth)).max() <= tolerance * np.abs(truth).max()


# ---- against autograd ----


@pytest.mark.parametrize(("rows", "width"), [(1, 576), (37, 64), (5, 33)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_rmsnorm(ctx, rows, width, accumulate):
    inp = noise(0, rows, width)
    weight = noise(1, width)
    dout = noise(2, rows, width)
    before = noise(3, rows, width)
    out = np.empty_like(inp)
    rstd = np.empty(rows, np.float32)
    dinp = before.copy()
    ctx.rmsnorm_forward(out, rstd, inp, weight, 1e-5)
    ctx.rmsnorm_backward(dinp, dout, inp, weight, rstd, accumulate)
    x = leaf(inp)
    want = F.rms_norm(x, (width,), torch.from_numpy(weight).double(), 1e-5)
    want.backward(torch.from_numpy(dout).double())
    close(out, want)
    close(dinp, x.grad + torch.from_numpy(before) if accumulate else x.grad)


@pytest.mark.parametrize("hidden", [False, True])
def test_rmsnorm_bf16(ctx, hidden):
    """hidden: from and to the float residual, else all bf16."""
    inp = noise(0, 37, 50)
    weight = noise(1, 50)
    dout = bf16(noise(2, 37, 50))
    before = noise(3, 37, 50)
    x = inp if hidden else bf16(inp)
    out = np.empty((37, 50), np.uint16)
    rstd = np.empty(37, np.float32)
    dinp = before if hidden else np.empty_like(x)
    ctx.rmsnorm_forward(out, rstd, x, weight, 1e-5)
    leafs = leaf(x if hidden else floats(x))
    want = F.rms_norm(leafs, (50,), torch.from_numpy(weight).double(), 1e-5)
    want.backward(torch.from_numpy(floats(dout)).double())
    close_bf16(out, want)
    if hidden:
        truth = leafs.grad + torch.from_numpy(before)
        ctx.rmsnorm_backward(dinp, dout, x, weight, rstd, True)
        close(dinp, truth)
    else:
        ctx.rmsnorm_backward(dinp, dout, x, weight, rstd)
        close_bf16(dinp, leafs.grad)


@pytest.mark.parametrize(("rows", "width"), [(1, 576), (37, 64), (5, 33)])
@pytest.mark.parametrize("store", ["float", "bf16"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_layernorm(ctx, rows, width, store, accumulate):
    """With a bias, and without where gradients accumulate."""
    to, back, near = (bf16, floats, close_bf16) if store == "bf16" else (np.copy, np.copy, close)
    inp = to(noise(0, rows, width) + 3)
    weight = noise(1, width)
    bias = None if accumulate else noise(4, width)
    dout = to(noise(2, rows, width))
    before = to(noise(3, rows, width))
    out = np.empty_like(inp)
    mean, rstd = (np.empty(rows, np.float32) for _ in range(2))
    dinp = before.copy()
    ctx.layernorm_forward(out, mean, rstd, inp, weight, bias, 1e-5)
    ctx.layernorm_backward(dinp, dout, inp, weight, mean, rstd, accumulate)
    x = leaf(back(inp))
    want = F.layer_norm(x, (width,), *(None if each is None else torch.from_numpy(each).double()
                                       for each in (weight, bias)), 1e-5)
    want.backward(torch.from_numpy(back(dout)).double())
    near(out, want)
    near(dinp, x.grad + torch.from_numpy(back(before)) if accumulate else x.grad, 1e-5)
    close(mean, x.mean(-1))
    close(rstd, (x.var(-1, correction=0) + 1e-5).rsqrt())


@pytest.mark.parametrize("neox", [False, True])
@pytest.mark.parametrize(("heads", "width", "n_rot"), [(3, 64, 64), (2, 80, 32), (1, 6, 2)])
def test_rope(ctx, neox, heads, width, n_rot):
    inp = noise(0, 19, heads, width)
    dout = noise(1, 19, heads, width)
    tokens = 19
    positions = np.random.default_rng(2).integers(0, 50, tokens, dtype=np.int32)
    angles = np.outer(np.arange(50), 100.0 ** -np.linspace(0, 1, n_rot // 2))
    cos = np.cos(angles).astype(np.float32)
    sin = np.sin(angles).astype(np.float32)
    out = inp.copy()
    dinp = dout.copy()
    ctx.rope(out, cos, sin, positions, neox, 1.0)
    ctx.rope(dinp, cos, sin, positions, neox, -1.0)
    x = leaf(inp)
    pairs = x[..., :n_rot].unflatten(-1, (2, -1)).transpose(-1, -2) if neox else x[..., :n_rot].unflatten(-1, (-1, 2))
    turn = torch.complex(torch.from_numpy(cos).double(), torch.from_numpy(sin).double())[positions][:, None]
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    turned = turned.transpose(-1, -2).flatten(-2) if neox else turned.flatten(-2)
    want = torch.cat([turned, x[..., n_rot:]], -1)
    want.backward(torch.from_numpy(dout).double())
    close(out, want)
    close(dinp, x.grad)


@pytest.mark.parametrize("neox", [False, True])
def test_rope_bf16(ctx, neox):
    x = bf16(noise(0, 19, 3, 80))
    positions = np.arange(19, dtype=np.int32)[::-1].copy()
    angles = noise(1, 19, 25)
    cos = np.cos(angles)
    sin = np.sin(angles)
    first, second = (x[..., :25], x[..., 25:50]) if neox else (x[..., :50:2], x[..., 1:50:2])
    a, b = (torch.from_numpy(floats(part)).double() for part in (first, second))
    c, s = (torch.from_numpy(table[positions][:, None]).double() for table in (cos, sin))
    rest = x[..., 50:].copy()
    ctx.rope(x, cos, sin, positions, neox, 1.0)
    close_bf16(first, a * c - b * s)
    close_bf16(second, a * s + b * c)
    assert (x[..., 50:] == rest).all()


def test_add_bias_bf16(ctx):
    x = bf16(noise(0, 9, 37))
    bias = noise(1, 37)
    want = torch.from_numpy(floats(x)).double() + torch.from_numpy(bias)
    ctx.add_bias(x, bias)
    close_bf16(x, want)


def test_dropout_bf16(ctx):
    """The mask is that of floats; from bf16 to float is the very float."""
    x = bf16(noise(0, 20_001))
    want = np.empty(x.size, np.float32)
    wide = np.empty(x.size, np.float32)
    narrow = np.empty_like(x)
    ctx.dropout(want, floats(x), 0.3, 5)
    ctx.dropout(wide, x, 0.3, 5)
    ctx.dropout(narrow, x, 0.3, 5)
    assert (wide == want).all()
    close_bf16(narrow, torch.from_numpy(want))


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_erf", "sigmoid"])
@pytest.mark.parametrize(("size", "store", "read", "near"), [
    (1.0, np.copy, np.copy, close), (20.0, np.copy, np.copy, close), (5.0, bf16, floats, close_bf16)])
def test_glu(ctx, kind, size, store, read, near):
    gate = store(noise(0, 9, 111) * np.float32(size))
    up = store(noise(1, 9, 111))
    dout = store(noise(2, 9, 111))
    out, again, dgate, dup = (np.empty_like(gate) for _ in range(4))
    ctx.glu_forward(out, gate, up, kind)
    ctx.glu_backward(dgate, dup, again, dout, gate, up, kind)
    g = leaf(read(gate))
    u = leaf(read(up))
    act = {"silu": F.silu, "gelu": lambda x: F.gelu(x, approximate="tanh"), "gelu_erf": F.gelu,
           "sigmoid": torch.sigmoid}[kind]
    want = act(g) * u
    want.backward(torch.from_numpy(read(dout)).double())
    near(out, want)
    near(dgate, g.grad)
    near(dup, u.grad)
    near(again, want)


@pytest.mark.parametrize("shape", [(1,), (31,), (9, 70)])
@pytest.mark.parametrize("store", ["float", "bf16"])
def test_gelu(ctx, shape, store):
    to, back, near = (bf16, floats, close_bf16) if store == "bf16" else (np.copy, np.copy, close)
    inp = to(noise(0, *shape) * 4)
    dout = to(noise(1, *shape))
    out = inp.copy()
    act = np.empty_like(inp)
    dinp = dout.copy()
    ctx.gelu_forward(out, out)
    ctx.gelu_backward(dinp, act, dinp, inp)
    x = leaf(back(inp))
    want = F.gelu(x)
    want.backward(torch.from_numpy(back(dout)).double())
    near(out, want)
    near(act, want)
    near(dinp, x.grad)


def test_gelu_is_near_its_definition_everywhere(ctx):
    """The error function within 1e-6."""
    x = np.linspace(-12, 12, 100_001, dtype=np.float32)
    out = np.empty_like(x)
    ctx.gelu_forward(out, x)
    found = 2 * out.astype(np.float64) / np.where(x, x, 1) - 1
    assert np.abs(found - torch.erf(torch.from_numpy(x).double() / 2**0.5).numpy())[x != 0].max() < 1e-6


@lru_cache(maxsize=1)  # for the kernel sets, one after another
def by_torch(shape, documents, window, store, read, both_ways):
    """(q, k, v, dout, end, position; out, lse, dq, dk, dv by torch)."""
    tokens, heads, kv_heads, width = shape
    q, k, v, dout = (store(noise(seed, tokens, n, width)) for seed, n in enumerate((heads, kv_heads, kv_heads, heads)))
    end, position = forest(tokens, documents)
    tq, tk, tv = (leaf(read(x)) for x in (q, k, v))
    kh, vh = (x.repeat_interleave(heads // kv_heads, 1).transpose(0, 1) for x in (tk, tv))
    mask = torch.from_numpy(visible(end, position, window, both_ways))
    scale = width**-0.5
    want = F.scaled_dot_product_attention(tq.transpose(0, 1), kh, vh, mask, scale=scale).transpose(0, 1)
    want.backward(torch.from_numpy(read(dout)).double())
    scores = (tq.transpose(0, 1) @ kh.transpose(1, 2) * scale).masked_fill(~mask, -torch.inf)
    return (q, k, v, dout, end, position), (want, scores.logsumexp(-1), tq.grad, tk.grad, tv.grad)


def attention(ctx, shape, documents, window, store=np.copy, read=np.copy, precision="exact", both_ways=False):
    """What the kernels compute, and torch: {name: (found, wanted)}."""
    tokens, heads, _, width = shape
    (q, k, v, dout, end, position), wanted = by_torch(shape, documents, window, store, read, both_ways)
    begin = np.arange(tokens, dtype=np.int32) - position if both_ways else None
    scale = width**-0.5
    out, dq, dk, dv = (np.empty_like(x) for x in (q, q, k, v))
    lse, delta = (np.empty((heads, tokens), np.float32) for _ in range(2))
    ctx.attention_forward(out, lse, q, k, v, end, position, scale, window, precision, begin)
    ctx.attention_backward(dq, dk, dv, delta, dout, out, lse, q, k, v, end, position, scale, window, precision, begin)
    found = (read(out), lse, read(dq), read(dk), read(dv))
    return {name: both for name, *both in zip(("out", "lse", "dq", "dk", "dv"), found, wanted, strict=True)}


@pytest.mark.parametrize("shape", [(1, 1, 1, 32), (17, 3, 1, 64), (130, 6, 2, 80), (150, 2, 2, 128), (70, 2, 1, 256),
                                   (70, 2, 1, 512)])
@pytest.mark.parametrize(("documents", "window", "both_ways"), [
    (1, 0, False), (5, 0, False), (1, 20, False), (3, 64, False), (0, 0, False), (0, 9, False),
    (1, 0, True), (5, 0, True), (1, 20, True), (3, 64, True)])
def test_attention(ctx, shape, documents, window, both_ways):
    found = attention(ctx, shape, documents, window, both_ways=both_ways)
    close(*found["out"])
    for name in ("lse", "dv"):
        close(*found[name], 1e-5)
    for got, want in (found["dq"], found["dk"]):
        if shape[0] > 1:
            close(got, want, 1e-5)
        else:  # one key: its probability is 1 whatever q and k are
            assert np.abs(got).max() < 1e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(17, 3, 1, 64), (130, 6, 2, 80), (200, 9, 3, 64), (130, 6, 2, 512)])
@pytest.mark.parametrize(("documents", "window", "both_ways"), [
    (1, 0, False), (5, 0, False), (1, 20, False), (0, 0, False), (0, 9, False), (1, 0, True), (5, 0, True),
    (1, 20, True)])
def test_attention_in_bf16(isa, shape, documents, window, both_ways):
    found = attention(cpu.Cpu(2, isa), shape, documents, window, bf16, floats, "fast", both_ways)
    for name, tolerance in (("out", 6e-3), ("dq", 1e-2), ("dk", 1e-2), ("dv", 6e-3)):
        close(*found[name], tolerance)


@pytest.mark.parametrize(("tokens", "vocabulary", "width", "block", "cap"), [
    (1, 7, 32, 4, 0.0), (13, 1003, 64, 256, 0.0), (8, 300, 96, 300, 0.0), (13, 1003, 64, 256, 20.0)])
def test_head(ctx, tokens, vocabulary, width, block, cap):
    h = noise(0, tokens, width)
    w = noise(1, vocabulary, width)
    a = noise(2, tokens)
    targets = np.random.default_rng(3).integers(0, vocabulary, tokens, dtype=np.int32)
    logits = np.empty((tokens, block), np.float32)
    state = np.empty((tokens, HEAD_STATE), np.float32)
    logp = np.empty(tokens, np.float32)
    best = np.empty(tokens, np.int32)
    again = np.empty_like(logp)
    dh = np.empty_like(h)
    ctx.head_forward(logp, best, logits, state, h, w, "F32", targets, cap=cap)
    ctx.head_backward(dh, again, logits, logits, state, h, w, "F32", targets, a, cap=cap)
    x = leaf(h)
    z = x @ torch.from_numpy(w).double().T
    z = cap * (z / cap).tanh() if cap else z
    want = z.log_softmax(-1)[torch.arange(tokens), torch.from_numpy(targets).long()]
    (-want * torch.from_numpy(a)).sum().backward()
    close(logp, want)
    close(again, want)
    close(dh, x.grad, 1e-5)
    assert (best == z.argmax(-1).numpy()).all()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw(ctx, weight_decay):
    param = noise(0, 333)
    m = np.zeros(333, np.float32)
    v = np.zeros(333, np.float32)
    p = leaf(param)
    optimizer = torch.optim.AdamW([p], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)
    for step in range(1, 6):
        grad = noise(step, 333)
        ctx.adamw(param, grad, m, v, 1e-2, 0.9, 0.95, 1e-8, weight_decay, step)
        p.grad = torch.from_numpy(grad).double()
        optimizer.step()
    close(param, p)
    close(m, optimizer.state[p]["exp_avg"])
    close(v, optimizer.state[p]["exp_avg_sq"])


# ---- what autograd cannot tell ----


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_dropout_drops_the_share_it_is_told(ctx, p):
    ones, out, other, neighbour = np.ones(200_000, np.float32), *(np.empty(200_000, np.float32) for _ in range(3))
    ctx.dropout(out, ones, p, 7)
    ctx.dropout(other, ones, p, 7 + (1 << 40))
    ctx.dropout(neighbour, ones, p, 8)
    kept = out > 0
    sigma = (p * (1 - p) / out.size) ** 0.5
    np.testing.assert_allclose(out[kept], 1 / (1 - p), rtol=1e-6)
    assert abs(kept.mean() - (1 - p)) < 5 * sigma
    for a, b in [(kept[1:], kept[:-1]), (kept[1 << 14:], kept[:-1 << 14]), (kept, other > 0), (kept, neighbour > 0)]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / a.size**0.5


def test_dropout_has_one_mask_on_all_rows_and_calls():
    inp = noise(0, 50_000)
    masks = []
    for isa in ISAS:
        for threads in (1, 3):
            out = np.empty_like(inp)
            cpu.Cpu(threads, isa).dropout(out, inp, 0.1, 2**63 + 5)
            masks.append(out)
    assert all((mask == masks[0]).all() for mask in masks)
    nothing = np.empty_like(inp)
    cpu.Cpu(1).dropout(nothing, inp, 0.0, 3)
    assert (nothing == inp).all()


def test_sum_squares_is_the_same_on_all_kernel_sets():
    x = noise(0, 123_457)
    sums = {cpu.Cpu(threads, isa).sum_squares(x) for isa in ISAS for threads in (1, 3)}
    assert len(sums) == 1
    assert sums.pop() == pytest.approx(float((x.astype(np.float64) ** 2).sum()), rel=1e-13)


def everything(ctx):
    """One call of each op, large enough for several tasks."""
    tokens = 200
    heads = 6
    kv_heads = 2
    width = 64
    vocabulary = 500
    x = noise(0, tokens, heads * width)
    y = noise(1, tokens, heads * width)
    weight = noise(2, heads * width)
    out = np.empty_like(x)
    rstd = np.empty(tokens, np.float32)
    dinp = np.empty_like(x)
    ctx.rmsnorm_forward(out, rstd, x, weight, 1e-6)
    ctx.rmsnorm_backward(dinp, y, x, weight, rstd)
    q = x.reshape(tokens, heads, width)
    k = noise(3, tokens, kv_heads, width)
    v = noise(4, tokens, kv_heads, width)
    att = np.empty_like(q)
    lse = np.empty((heads, tokens), np.float32)
    delta = np.empty((heads, tokens), np.float32)
    dq = np.empty_like(q)
    dk = np.empty_like(k)
    dv = np.empty_like(v)
    end, position = forest(tokens, 3)
    ctx.attention_forward(att, lse, q, k, v, end, position, 0.125)
    ctx.attention_backward(dq, dk, dv, delta, y.reshape(q.shape), att, lse, q, k, v, end, position, 0.125)
    begin = np.arange(tokens, dtype=np.int32) - position
    seen = [np.empty_like(each) for each in (att, lse, dq, dk, dv)]
    ctx.attention_forward(*seen[:2], q, k, v, end, position, 0.125, begin=begin)
    ctx.attention_backward(*seen[2:], delta.copy(), y.reshape(q.shape), *seen[:2], q, k, v, end, position, 0.125,
                           begin=begin)
    normed, gelu, dgelu = (np.empty_like(x) for _ in range(3))
    mean = np.empty(tokens, np.float32)
    ctx.layernorm_forward(normed, mean, rstd.copy(), x, weight, weight, 1e-6)
    ctx.gelu_backward(dgelu, gelu, y, x)
    turned = q.copy()
    angles = noise(5, tokens, width // 2)
    ctx.rope(turned, angles, angles, np.arange(tokens, dtype=np.int32), False, 1.0)
    act = np.empty_like(x)
    dgate = np.empty_like(x)
    dup = np.empty_like(x)
    ctx.glu_forward(act, x, y, "silu")
    ctx.glu_backward(dgate, dup, act, out, x, y, "gelu")
    added = x.copy()
    biased = x.copy()
    scaled = x.copy()
    dropped = np.empty_like(x)
    ctx.add(added, y)
    ctx.add_bias(biased, weight)
    ctx.scale(scaled, 0.3)
    ctx.dropout(dropped, x, 0.2, 11)
    w = noise(6, vocabulary, x.shape[1])
    targets = np.arange(tokens, dtype=np.int32)
    logits = np.empty((tokens, 128), np.float32)
    state = np.empty((tokens, HEAD_STATE), np.float32)
    logp = np.empty(tokens, np.float32)
    best = np.empty(tokens, np.int32)
    dh = np.empty_like(x)
    ctx.head_forward(logp, best, logits, state, x, w, "F32", targets)
    ctx.head_backward(dh, logp, logits, logits, state, x, w, "F32", targets, weight[:tokens])
    param = x.copy()
    m = np.zeros_like(x)
    var = np.zeros_like(x)
    ctx.adamw(param, y, m, var, 1e-3, 0.9, 0.999, 1e-8, 0.01, 1)
    moments = np.zeros((-(-x.size // MOMENTS), MOMENT_BYTES), np.uint8)
    ctx.adamw8(added, y, moments, 1e-3, 0.9, 0.999, 1e-8, 0.01, 1, 5)
    return [*seen, normed, mean, gelu, dgelu, moments, out, rstd, dinp, att, lse, delta, dq, dk, dv, turned, act,
            dgate, dup, added, biased, scaled, dropped, logp, best, dh, param, m, var, np.array(ctx.sum_squares(x))]


@pytest.mark.parametrize("isa", ISAS)
def test_threads_change_no_bit(isa):
    alone = everything(cpu.Cpu(1, isa))
    for threads in (2, 3):
        for one, many in zip(alone, everything(cpu.Cpu(threads, isa)), strict=True):
            assert one.tobytes() == many.tobytes()
