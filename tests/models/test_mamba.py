"""Mamba 2: the scan against autograd, groups against llama.cpp, long branches against rows alone, files refused."""

import numpy as np
import pytest
import torch
from families import logits_of
from long_branches import check_forest, check_served, rows_that_branch
from random_adapters import distance
from tiny import write_tiny
from torch.nn import functional

from edgetune.adapters.store import save_gguf
from edgetune.backends.cpu import Cpu
from edgetune.bench.train import random_rows
from edgetune.data.packing import Example, collate, kept_states, pieces_of
from edgetune.errors import EdgetuneError
from edgetune.formats.gguf import open_gguf
from edgetune.formats.shape import read_shape
from edgetune.training.trainer import Trainer

LIMIT = 1e-4


def scan(inp, steps, a, skip, sizes, before):
    """out [T, H, C], one token after the other, by definition."""
    heads, width, state, groups = sizes
    x, b, c = inp.split([heads * width, groups * state, groups * state], 1)
    x = x.reshape(-1, heads, width)
    b, c = (part.reshape(-1, groups, state).repeat_interleave(heads // groups, 1) for part in (b, c))
    states = {-1: torch.zeros(heads, state, width, dtype=inp.dtype)}
    outs = []
    for t, parent in enumerate(before.tolist()):
        added = torch.einsum("hn,hc->hnc", b[t], x[t] * steps[t, :, None])
        states[t] = states[parent] * (steps[t] * a).exp()[:, None, None] + added
        outs.append(torch.einsum("hnc,hn->hc", states[t], c[t]) + skip[:, None] * x[t])
    return torch.stack(outs)


@pytest.mark.dev
@pytest.mark.parametrize("sizes", [(2, 16, 16, 1), (4, 32, 16, 2), (3, 16, 48, 3)])
def test_the_scan_and_its_gradients_are_autograds(sizes):
    heads, width, state, groups = sizes
    before = collate([Example(row, np.zeros(row.size, np.float32)) for row in rows_that_branch(9)]).before
    t = before.size
    channels = heads * width + 2 * groups * state
    rng = np.random.default_rng(0)
    inp, rows, bias, a, skip, dout = (rng.standard_normal(shape).astype(np.float32) for shape in (
        (t, channels), (t, 7 + heads), (heads,), (heads,), (heads,), (t, heads, width)))
    a = -np.abs(a)
    given = [torch.from_numpy(x).double().requires_grad_() for x in (inp, rows)]
    steps = functional.softplus(given[1][:, 7:] + torch.from_numpy(bias))
    want = scan(given[0], steps, torch.from_numpy(a), torch.from_numpy(skip), sizes, before)
    want.backward(torch.from_numpy(dout).double())

    ops = Cpu(2)
    out = np.empty_like(dout)
    states, dstates = (np.empty((kept_states(t), heads, state, width), np.float32) for _ in range(2))
    work = np.empty((3, heads, t), np.float32)
    rest = inp, rows, bias, a, skip, before, pieces_of(before), state
    ops.ssm_forward(out, states, work, *rest)
    assert distance(out, want.detach().numpy()) < LIMIT
    dinp = np.empty_like(inp)
    drows = np.zeros_like(rows)
    ops.ssm_backward(dinp, drows, states, dstates, work, dout, *rest)
    for ours, theirs in zip((dinp, drows), given, strict=True):
        assert distance(ours, theirs.grad.numpy()) < LIMIT


@pytest.mark.parametrize("mamba", [(8, 32, 1), (4, 16, 2), (8, 128, 4)])
def test_logits_are_llama_cpps_with_and_without_an_adapter(mamba, tmp_path):
    """Of a text of several pieces. Norms and B and C are of groups, as transformers has them not."""
    path = write_tiny(tmp_path / "tiny.gguf", "granitehybrid", mamba=mamba)
    assert check_served(path) > 0.05


@pytest.mark.parametrize("kept", [1, 3])
def test_a_forest_of_long_rows_equals_the_rows_alone(kept, tmp_path):
    check_forest(write_tiny(tmp_path / "tiny.gguf", "granitehybrid"), kept)


def test_a_trained_adapter_changes_what_llama_cpp_answers(tmp_path):
    path = write_tiny(tmp_path / "tiny.gguf", "granitehybrid", formats="Q8_0")
    trainer = Trainer(path, steps=3, batch_size=4, max_length=80, threads=2, lr=0.01, targets="in_proj,out_proj")
    trainer.add_examples(random_rows(416, 8, 70, 1))
    trainer.train()
    save_gguf(tmp_path / "a.gguf", trainer.decoder.adapter.artifact().pairs, open_gguf(path))
    tokens = list(range(20, 60))
    assert distance(logits_of(path, tokens, tmp_path / "a.gguf"), logits_of(path, tokens)) > 1e-3


@pytest.mark.parametrize(("key", "value", "words"), [
    ("ssm.state_size", None, "lacks granitehybrid.ssm.state_size"),
    ("ssm.state_size", 256, "edgetune takes 1 to 128"),
    ("ssm.inner_size", 96, "twice the embedding length"),
    ("ssm.time_step_rank", 3, "has 3 heads of 128 values"),
    ("ssm.group_count", 3, "3 groups"),
    ("ssm.conv_kernel", 9, "edgetune takes 1 to 8"),
    ("attention.head_count_kv", [0, 0, 0], "one such block"),
    ("expert_count", 4, "lacks granitehybrid.expert_used_count"),
])
def test_impossible_sizes_are_refused(key, value, words, tmp_path):
    path = write_tiny(tmp_path / "tiny.gguf", "granitehybrid", metadata={f"granitehybrid.{key}": value})
    with pytest.raises(EdgetuneError, match=words):
        read_shape(open_gguf(path))
