"""The gated delta net: the rule against autograd, long branches against rows alone, what states take, files refused."""


import numpy as np
import pytest
import torch
from durable import go, stop
from families import logits_of
from long_branches import check_forest, check_served, rows_that_branch
from random_adapters import distance
from tiny import write_tiny
from torch.nn import functional

from edgetune.adapters.low_rank import LoraFamily
from edgetune.backends.cpu import Cpu
from edgetune.bench.train import random_rows
from edgetune.data.packing import Example, collate, kept_states, pieces_of
from edgetune.errors import EdgetuneError
from edgetune.formats.bundle import open_bundle
from edgetune.formats.gguf import check_model, open_gguf
from edgetune.formats.shape import read_shape
from edgetune.models.decoder import Model
from edgetune.models.linear import RunShape
from edgetune.models.stream import sizes
from edgetune.serving.rollouts.forward import open_decoder
from edgetune.training.trainer import Trainer

LIMIT = 1e-4


def rule(qkv, beta, alpha, a, dt, groups, before):
    """out [T, H, C], one token after the other, by definition."""
    heads = beta.shape[1]
    width = qkv.shape[2]
    q, k, v = qkv.split([groups, groups, heads], 1)
    q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    q, k = (x.repeat(1, heads // groups, 1) for x in (q / width**0.5, k))  # value head h has head h mod G
    decay = (a * functional.softplus(alpha + dt)).exp()
    states = {-1: torch.zeros(heads, width, width, dtype=qkv.dtype)}
    outs = []
    for t, parent in enumerate(before.tolist()):
        state = states[parent] * decay[t, :, None, None]
        d = torch.sigmoid(beta[t])[:, None] * (v[t] - torch.einsum("hij,hi->hj", state, k[t]))
        states[t] = state + torch.einsum("hi,hj->hij", k[t], d)
        outs.append(torch.einsum("hij,hi->hj", states[t], q[t]))
    return torch.stack(outs)


@pytest.mark.dev
@pytest.mark.parametrize(("heads", "groups", "width"), [(2, 2, 16), (4, 2, 32), (3, 1, 20)])
def test_the_rule_and_its_gradients_are_autograds(heads, groups, width):
    before = collate([Example(row, np.zeros(row.size, np.float32)) for row in rows_that_branch(9)]).before
    t = before.size
    rng = np.random.default_rng(0)
    qkv, beta, alpha, a, dt, dout = (rng.standard_normal(shape).astype(np.float32) for shape in (
        (t, 2 * groups + heads, width), (t, heads), (t, heads), (heads,), (heads,), (t, heads, width)))
    a = -np.abs(a)
    inputs = [torch.from_numpy(x).double() for x in (qkv, beta, alpha, a, dt)]
    given = [x.requires_grad_() for x in inputs[:3]]
    want = rule(*inputs, groups, before)
    want.backward(torch.from_numpy(dout).double())

    ops = Cpu(2)
    pieces = pieces_of(before)
    out = np.empty_like(dout)
    states, dstates = (np.empty((kept_states(t), heads, width, width), np.float32) for _ in range(2))
    rest = beta, alpha, a, dt
    ops.delta_forward(out, states, qkv, *rest, before, pieces, 1e-6)
    assert distance(out, want.detach().numpy()) < LIMIT
    grads = [np.empty_like(x) for x in (qkv, beta, alpha)]
    ops.delta_backward(*grads, dstates, dout, qkv, *rest, states, before, pieces, 1e-6)
    for ours, theirs in zip(grads, given, strict=True):
        assert distance(ours, theirs.grad.numpy()) < LIMIT


@pytest.mark.parametrize("delta", [(2, 2, 16), (2, 4, 16), (1, 3, 64)])
def test_logits_are_llama_cpps_with_and_without_an_adapter(delta, tmp_path):
    """Of a text of several pieces. The adapter changes every projection that it may."""
    path = write_tiny(tmp_path / "tiny.gguf", "qwen35", delta=delta)
    assert check_served(path) > 0.1


@pytest.mark.parametrize("kept", [1, 3])
def test_a_forest_of_long_rows_equals_the_rows_alone(kept, tmp_path):
    check_forest(write_tiny(tmp_path / "tiny.gguf", "qwen35"), kept)


def test_states_take_a_sixty_fourth_of_one_a_token(tmp_path):
    """With what backward needs of them, and with branches: what is planned knows the number of tokens alone."""
    model = Model(open_gguf(write_tiny(tmp_path / "tiny.gguf", "qwen35", delta=(2, 4, 64))))
    run = RunShape(max_tokens=2048, max_length=2048, family=LoraFamily(rank=4, alpha=4), threads=1, precision="fast",
                   targets=model.structure.targets(), blocks=range(3), kept=3)
    buffers = {buffer.name: buffer for buffer in model.structure.buffers(run)}
    one_a_token = 2048 * 4 * 4 * 64 * 64
    assert buffers["states"].nbytes == 2 * one_a_token // 64  # of two blocks that are delta nets
    assert buffers["dstates"].nbytes == one_a_token // 64


def test_which_blocks_have_states(tmp_path):
    for keys, states in (({}, (0, 2)), ({"qwen35.full_attention_interval": 3}, (0, 1)),
                         ({"qwen35.attention.recurrent_layers": [True, False, True]}, (0, 2))):
        path = tmp_path / "tiny.gguf"
        every = keys.get("qwen35.full_attention_interval", 2)
        write_tiny(path, "qwen35", metadata=keys, attends_every=every)
        shape = opened(path)
        assert tuple(i for i in range(3) if shape.mixer(i) == "delta net") == states


def test_under_a_budget_it_learns_the_same(tmp_path):
    """Weights streamed change no bit, with one thread or two; what is computed again is rounded otherwise."""
    path = write_tiny(tmp_path / "tiny.gguf", "qwen35", formats="Q8_0")
    rows = random_rows(400, 4, 150, seed=1)
    losses = []
    adapters = []
    options = {"rank": 4, "batch_size": 2, "max_length": 150, "steps": 3, "lr": 1e-2, "recompute": "block"}
    for change in ({"threads": 1}, {"threads": 2}, {"threads": 1, "weights": "streamed"},
                   {"threads": 1, "recompute": "none"}):
        trainer = Trainer(path, **{**options, **change})
        trainer.add_examples(rows)
        losses.append([result.loss for result in trainer.train()])
        adapters.append(trainer.arena.flat("lora").tobytes())
    assert losses[0] == losses[1] == losses[2]
    assert adapters[0] == adapters[1] == adapters[2]
    assert losses[3] == pytest.approx(losses[0], rel=2e-3)
    assert losses[0][-1] < losses[0][0]


def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path):
    bundle = open_bundle(write_tiny(tmp_path / "tiny.gguf", "qwen35", formats="Q8_0"))
    wanted = go(bundle, tmp_path / "undisturbed")
    stop(bundle, tmp_path / "out", 21)
    assert go(bundle, tmp_path / "out", resume=True) == wanted


def test_blocks_that_draft_are_not_read(tmp_path):
    """Logits are llama.cpp's, and a budget counts the other blocks alone."""
    path = write_tiny(tmp_path / "tiny.gguf", "qwen35", drafts=1)
    plain = write_tiny(tmp_path / "plain.gguf", "qwen35")
    assert opened(path) == opened(plain)
    of_both = [sizes(open_gguf(each).tensors.values(), 3) for each in (path, plain)]
    assert of_both[0] == of_both[1]
    tokens = np.random.default_rng(3).integers(10, 400, 40).astype(np.int32)
    decoder = open_decoder(Model(open_gguf(path)), {}, threads=1, max_tokens=40, max_length=40)
    ours = decoder.logits(collate([Example(tokens, np.ones(40, np.float32))]))
    assert distance(ours, logits_of(path, tokens.tolist())) < 5e-4


def opened(path):
    gguf = open_gguf(path)
    check_model(gguf)
    return read_shape(gguf)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("rope.dimension_sections", [1, 3, 2, 0], "four sections that rotate all 8 pairs"),
    ("rope.dimension_sections", None, "four sections"),
    ("attention.recurrent_layers", [True, False], "must have 3"),
    ("ssm.conv_kernel", 9, "takes 1 to 8 there"),
    ("ssm.state_size", 256, "takes 1 to 128 there"),
    ("ssm.state_size", None, "lacks qwen35.ssm.state_size"),
    ("ssm.group_count", 3, "a multiple of the key heads"),
    ("ssm.inner_size", 32, "must be as wide as keys"),
    ("nextn_predict_layers", 3, "nextn_predict_layers is 3, allowed are 0 to 2"),
])
def test_what_cannot_be_trained_is_refused_with_a_sentence(key, value, message, tmp_path):
    path = write_tiny(tmp_path / "tiny.gguf", "qwen35", metadata={f"qwen35.{key}": value})
    with pytest.raises(EdgetuneError, match=message):
        opened(path)
