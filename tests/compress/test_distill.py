"""Distillation: against steps of PyTorch written out here, stopped and taken up again, and what it is for."""

import dataclasses
import math

import numpy as np
import pytest
from sometimes import mostly_slow

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from families import FAMILIES, make_family

from edgetune.compress.options import CompressConfig
from edgetune.compress.shrink import distill, prune
from edgetune.compress.source import floats
from edgetune.compress.source import huggingface as hf
from edgetune.errors import DataError, Interrupted, MismatchError, NumericsError
from edgetune.formats.gguf import open_gguf

RNG = np.random.default_rng(0)
WINDOWS = RNG.integers(0, 416, (20, 24)).astype(np.int32)  # two are held out
CONFIG = CompressConfig(steps=6, distill_batch=2, distill_lr=1e-3, distill_length=24)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """bf16 would blur the comparisons with PyTorch; what is tested here is the same in both."""
    monkeypatch.setattr("edgetune.compress.shrink.blockwise.quick", lambda: False)
    monkeypatch.setattr("edgetune.compress.shrink.distill.quick", lambda: False)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """family -> (a model without its middle block, the whole one)."""
    made = {}
    for family in FAMILIES:
        path, _ = make_family(family, tmp_path_factory.mktemp(family))
        whole = floats.read(open_gguf(path))
        made[family] = prune.without_blocks(whole, [0, 2]), whole
    return made


def distilled(pair, folder, config=CONFIG, windows=WINDOWS, **how):
    return distill.distill(*pair, windows, config, folder, threads=1, **how)


def same(a, b):
    return all(np.array_equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def kl(student, teacher, ids):
    """[B, T, V] of both at once, as anybody would write it."""
    p, q = (model(ids, use_cache=False).logits.log_softmax(-1) for model in (teacher, student))
    return (p.exp() * (p - q)).sum(-1).mean()


@torch.no_grad()
def measured(student, teacher, ids):
    """KL, perplexity of the student and of the teacher, by transformers' own loss."""
    losses = (float(model(ids, labels=ids).loss) for model in (student, teacher))
    return float(kl(student, teacher, ids)), *map(math.exp, losses)


@pytest.mark.dev
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_are_adamw_on_the_kl_of_all_tokens(family, models, tmp_path):
    """Two steps over the same two windows: what is trained on does not hang on the order then."""
    windows = np.concatenate([WINDOWS[:2], WINDOWS[-1:]])
    config = dataclasses.replace(CONFIG, steps=2)
    found, facts = distilled(models[family], tmp_path / "state", config, windows)
    student, teacher = map(hf.to_torch, models[family])
    trained = [*student.model.layers.parameters(), *student.model.norm.parameters()]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.95))
    ids, held = (torch.from_numpy(part.astype(np.int64)) for part in (windows[:2], windows[2:]))
    first = measured(student, teacher, held)
    for lr in (1e-3, 0.5e-3):  # no step of warm-up; cosine at 0 and at 1/2
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        kl(student, teacher, ids).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    points = [(point.kl, point.perplexity, facts.source_perplexity) for point in facts.curve]
    assert points[0] == pytest.approx(first, rel=1e-4)
    assert points[-1] == pytest.approx(measured(student, teacher, held), rel=1e-4)
    assert (facts.tokens, facts.held_tokens) == (96, 24)
    assert facts.weights_trained == sum(parameter.numel() for parameter in trained)
    truth = hf.from_torch(student, models[family][0])
    for name, array in truth.tensors.items():
        np.testing.assert_allclose(found.tensors[name], array, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
def test_a_stopped_run_ends_with_the_same_bytes(rank, models, tmp_path):
    config = dataclasses.replace(CONFIG, distill_rank=rank)
    whole, facts = distilled(models["llama"], tmp_path / "whole", config)
    for stop in (0, 1, 4):  # calls of should_stop that pass
        calls = iter(range(100))
        with pytest.raises(Interrupted, match=r"^distillation was stopped after step \d of 6; "):
            distilled(models["llama"], tmp_path / "stopped", config, should_stop=lambda: next(calls) >= stop)  # noqa: B023
    again, facts_again = distilled(models["llama"], tmp_path / "stopped", config)
    assert same(again, whole)
    assert [(p.step, p.kl) for p in facts_again.curve] == [(p.step, p.kl) for p in facts.curve]
    # nothing is left to do
    done, _ = distilled(models["llama"], tmp_path / "stopped", config, should_stop=lambda: True)
    assert same(done, whole)


def test_the_seed_decides(models, tmp_path):
    one, other = (distilled(models["llama"], tmp_path / str(seed), dataclasses.replace(CONFIG, steps=2, seed=seed))[0]
                  for seed in (0, 1))
    assert not same(one, other)


def test_another_run_does_not_take_up_its_state(models, tmp_path):
    distilled(models["llama"], tmp_path / "state", dataclasses.replace(CONFIG, steps=1))
    changed = WINDOWS.copy()
    changed[0, 0] += 1
    for pair, config, windows in [
        (models["llama"], CONFIG, WINDOWS),
        (models["llama"], dataclasses.replace(CONFIG, steps=1, distill_lr=1e-5), WINDOWS),
        (models["llama"], dataclasses.replace(CONFIG, steps=1), changed),
        (models["llama"][::-1], dataclasses.replace(CONFIG, steps=1), WINDOWS),
    ]:
        with pytest.raises(MismatchError, match="holds a distillation of other models, text or options"):
            distilled(pair, tmp_path / "state", config, windows)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ["llama"]))
def test_distillation_brings_a_pruned_model_nearer(family, rank, models, tmp_path):
    """Few windows many times over, and the held-out ones among them: whether it learns, not whether it generalises."""
    windows = np.concatenate([WINDOWS[:8], WINDOWS[:1]])
    config = dataclasses.replace(CONFIG, steps=60, distill_batch=4, distill_lr=1e-2 if rank else 3e-3,
                                 distill_rank=rank)
    pair = models[family]
    found, facts = distilled(pair, tmp_path / "state", config, windows)
    assert facts.curve[-1].kl < 0.5 * facts.curve[0].kl
    assert [point.step for point in facts.curve] == list(range(0, 61, 6))
    assert list(found.tensors) == list(pair[0].tensors)
    last = measured(*map(hf.to_torch, (found, pair[1])), torch.from_numpy(windows[-1:].astype(np.int64)))
    assert (facts.curve[-1].kl, facts.curve[-1].perplexity) == pytest.approx(last[:2], rel=1e-3)
    assert np.array_equal(found.tensors["token_embd.weight"], pair[0].tensors["token_embd.weight"])


def test_progress_is_told(models, tmp_path):
    told = []
    distilled(models["llama"], tmp_path / "state", on_progress=lambda *what: told.append(what))
    assert told == [("distilling", step, 6) for step in range(6)]


def test_what_cannot_be_distilled_is_said(models, tmp_path):
    with pytest.raises(DataError, match="has 1 windows of 24 tokens, at least 2 are needed"):
        distilled(models["llama"], tmp_path / "state", windows=WINDOWS[:1])
    with pytest.raises(NumericsError, match="lower --distill-lr"):
        distilled(models["llama"], tmp_path / "state", dataclasses.replace(CONFIG, distill_lr=1e30))
